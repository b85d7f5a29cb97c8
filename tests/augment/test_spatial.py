"""Geometric augmentation against NumPy and SciPy."""

import itertools

import numpy as np
import pytest
import scipy.ndimage
import torch

from crkd_cli.augment.spatial import (
    affine,
    affine_label,
    center_crop,
    flip,
    flip_and_transpose,
    resize_image,
    resize_label,
    rotate,
    rotation_and_scale,
)


def test_flips_and_transposes_generate_the_eight_symmetries_of_a_square(dims: int) -> None:
    plane = (0, 1) if dims == 2 else (1, 2)
    shape = (5, 5) if dims == 2 else (3, 5, 5)
    x = torch.arange(float(np.prod(shape))).view(1, 1, *shape).repeat(8, 1, *[1] * dims)
    moves = torch.tensor(list(itertools.product([False, True], repeat=3)))
    transformed = flip_and_transpose(x, moves, plane)
    symmetries = {tuple(sample.flatten().tolist()) for sample in transformed}
    array = x[0, 0].numpy()
    expected = set()
    for k in range(4):
        turned = np.rot90(array, k, plane)
        expected |= {tuple(turned.flatten()), tuple(np.flip(turned, plane[0]).flatten())}
    assert len(expected) == 8
    assert symmetries == expected


def test_planes_with_unequal_sides_are_only_flipped() -> None:
    x = torch.arange(6.0).view(1, 1, 2, 3)
    moves = torch.tensor([[True, False, True]])
    assert torch.equal(flip_and_transpose(x, moves, (0, 1)), x.flip(2))


@pytest.mark.parametrize(("dims", "plane"), [(2, (0, 1)), (3, (0, 1)), (3, (1, 2))])
@pytest.mark.parametrize("degrees", [90.0, -17.0])
def test_rotate_against_scipy(dims: int, plane: tuple[int, int], degrees: float) -> None:
    axes = np.indices((9, 12, 7)[:dims], dtype=np.float64)
    array = np.cos(axes[0] / 3) * np.sin(axes[1] / 4 + 1) + (axes[2] if dims == 3 else 0) / 10
    x = torch.from_numpy(array).float().view(1, 1, *array.shape)
    rotated = rotate(x, torch.tensor([degrees]), plane, "bilinear")[0, 0].numpy()
    expected = scipy.ndimage.rotate(
        array, degrees, axes=plane[::-1], reshape=False, order=1, mode="grid-constant"
    )
    inner = tuple(slice(2, -2) if axis in plane else slice(None) for axis in range(dims))
    np.testing.assert_allclose(rotated[inner], expected[inner], atol=1e-4)


def test_rotate_keeps_label_values_and_follows_the_image() -> None:
    torch.manual_seed(0)
    label = torch.zeros(1, 1, 32, 32)
    label[..., 8:16, 12:28] = 3
    degrees = torch.tensor([15.0])
    rotated_label = rotate(label, degrees, (0, 1), "nearest")
    rotated_image = rotate(label, degrees, (0, 1), "bilinear")
    assert set(rotated_label.unique().tolist()) == {0.0, 3.0}
    assert ((rotated_image > 1.5) == (rotated_label > 1.5)).float().mean() > 0.98


def test_large_class_numbers_are_resized_like_small_ones() -> None:
    label = torch.randint(256, (2, 7, 9), dtype=torch.uint8)
    resized = resize_label(label.short() + 30_000, (5, 12))
    assert resized.dtype == torch.int16
    assert torch.equal(resized, resize_label(label, (5, 12)).short() + 30_000)


def test_resizing_commutes_with_flips_and_keeps_labels() -> None:
    rng = np.random.default_rng(0)
    label = torch.from_numpy(rng.integers(0, 4, (1, 13, 10), dtype=np.uint8))
    assert torch.equal(resize_label(label.flip(1), (16, 16)), resize_label(label, (16, 16)).flip(1))
    assert set(resize_label(label, (64, 48)).unique().tolist()) == {0, 1, 2, 3}
    image = torch.rand(1, 1, 13, 10)
    resized = resize_image(image, (32, 32), nearest=True)
    assert set(resized.unique().tolist()) <= set(image.unique().tolist())


def test_resizing_keeps_a_linear_ramp(dims: int) -> None:
    """Away from the edges; the ramp is twice as fine afterwards."""
    ramp = torch.arange(16.0).view(1, 1, 16, *[1] * (dims - 1)).expand(1, 1, *[16] * dims)
    resized = resize_image(ramp, [32] * dims, nearest=False)
    line = resized[0, 0].reshape(32, -1)[:, 100 % (16 ** (dims - 1))]
    expected = (torch.arange(32.0) + 0.5) / 2 - 0.5
    torch.testing.assert_close(line[4:-4], expected[4:-4], atol=1e-4, rtol=0)


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.0)


def test_affine_against_scipy(dims: int) -> None:
    """Also where the source has a margin, of which the result is the center."""
    outer, inner = (18, 16, 12)[:dims], (14, 12, 10)[:dims]
    degrees = torch.tensor([[20.0, -30.0, 12.0], [0.0, 0.0, 0.0]])[:, -1:]
    if dims == 3:
        degrees = torch.tensor([[20.0, -30.0, 12.0], [0.0, 0.0, 0.0]])
    matrices = rotation_and_scale(degrees, torch.tensor([1.3, 1.0]))
    volumes = np.stack([smooth(outer, 0), smooth(outer, 1)])
    x = torch.from_numpy(volumes).float().unsqueeze(1)
    resampled = affine(x, matrices, inner, range(dims))[:, 0].numpy()
    assert resampled.shape == (2, *inner)
    for volume, matrix, result in zip(volumes, matrices.double().numpy(), resampled, strict=True):
        offset = (np.array(outer) - 1) / 2 - matrix @ ((np.array(inner) - 1) / 2)
        expected = scipy.ndimage.affine_transform(
            volume, matrix, offset, inner, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("axes", [(0, 1), (0, 2), (1, 2)])
def test_affine_in_a_plane_treats_slices_as_images(axes: tuple[int, int]) -> None:
    volume = torch.from_numpy(smooth((9, 12, 10))).float().expand(2, 3, -1, -1, -1)
    (through,) = {0, 1, 2} - set(axes)
    size = tuple(side if axis == through else side - 2 for axis, side in enumerate((9, 12, 10)))
    matrix = rotation_and_scale(torch.tensor([[70.0], [-15.0]]), torch.tensor([0.8, 1.1]))
    resampled = affine(volume, matrix, size, axes)
    plane = tuple(size[axis] for axis in axes)
    for slice_number in range(size[through]):
        image = volume.select(through + 2, slice_number)
        expected = affine(image, matrix, plane, (0, 1))
        torch.testing.assert_close(resampled.select(through + 2, slice_number), expected)


def test_rotation_and_scale_in_3d_by_hand() -> None:
    """About axis 0, then 1, then 2, each a quarter turn: together a quarter turn about axis 1."""
    (matrix,) = rotation_and_scale(torch.full((1, 3), 90.0), torch.tensor([1.25]))
    first = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])
    second = np.array([[0, 0, -1], [0, 1, 0], [1, 0, 0]])
    third = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(matrix, 1.25 * third @ second @ first, atol=1e-6)
    assert torch.det(matrix).item() == pytest.approx(1.25**3)


def test_affine_label_takes_the_largest_indicator(dims: int) -> None:
    """Of ten values, in more than one part of the indicators; 0 wins outside."""
    torch.manual_seed(0)
    label = torch.randint(10, (2, *(12, 10, 8)[:dims])).short()
    degrees = torch.tensor([[25.0] * (1 if dims == 2 else 3), [-140.0] + [0.0] * (dims - 2) * 2])
    matrix = rotation_and_scale(degrees, torch.tensor([0.8, 1.3]))
    size = (10, 8, 8)[:dims]
    resampled = affine_label(label, matrix, size, range(dims), 10)
    assert resampled.dtype == torch.int16
    one_hot = torch.nn.functional.one_hot(label.long() + 1, 11).movedim(-1, 1).float()
    one_hot = affine(one_hot, matrix, size, range(dims))
    one_hot[:, 1] += 1 - one_hot.sum(1)  # outside is background
    assert torch.equal(resampled, one_hot.argmax(1).sub(1).short())
    largest = one_hot.topk(2, dim=1).values
    assert (largest[:, 0] > largest[:, 1]).float().mean() > 0.9


def test_an_identity_changes_nothing(dims: int) -> None:
    torch.manual_seed(0)
    label = torch.randint(4, (2, *[9] * dims), dtype=torch.uint8)
    matrix = rotation_and_scale(torch.zeros(2, 1 if dims == 2 else 3), torch.ones(2))
    assert torch.equal(affine_label(label, matrix, [9] * dims, range(dims), 4), label)
    inner = affine_label(label, matrix, [7] * dims, range(dims), 4)
    assert torch.equal(inner, center_crop(label.unsqueeze(1), [7] * dims).squeeze(1))


def test_flips_against_numpy(dims: int) -> None:
    x = torch.rand(4, 2, *(3, 4, 5)[:dims])
    chosen = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]]).bool()
    axes = (dims - 1, 0)
    flipped = flip(x, chosen, axes)
    for sample, row, result in zip(x, chosen, flipped, strict=True):
        along = [axis + 1 for axis, on in zip(axes, row, strict=True) if on]
        np.testing.assert_array_equal(result, np.flip(sample.numpy(), along))
