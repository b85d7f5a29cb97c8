"""Geometric augmentation against NumPy and SciPy."""

import itertools

import numpy as np
import pytest
import scipy.ndimage
import torch

from crkd_cli.augment.spatial import flip_and_transpose, resize_image, resize_label, rotate


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
