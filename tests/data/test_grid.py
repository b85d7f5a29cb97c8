"""Turning volumes, and resampling them to a grid and back."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from crkd_cli.data.grid import (
    Turn,
    coarse_axis,
    resample_image,
    resample_label,
    resampled_size,
    resampled_spacing,
)
from crkd_cli.data.raw.geometry import Geometry

LINES = ("RL", "AP", "SI")
ORIENTATIONS = [
    "".join(codes) for axes in permutations(LINES) for codes in product(*axes)
]  # all 48


def affine_of(orientation, spacing=(0.7, 0.9, 5.0), origin=(-12.5, 30.25, 7.75)):
    """Return the affine of NIfTI of an orientation; positions are in RAS."""
    affine = np.zeros((3, 4))
    for axis, code in enumerate(orientation):
        line = next(i for i, line in enumerate(LINES) if code in line)
        affine[line, axis] = spacing[axis] if code in "RAS" else -spacing[axis]
    affine[:, 3] = origin
    return affine


def nibabel_codes(affine):
    return "".join(nib.aff2axcodes(np.vstack([affine, (0, 0, 0, 1)])))


def nifti(array, affine):
    """Return the volume [z, y, x] as an image of nibabel, which is [x, y, z]."""
    return nib.Nifti1Image(array.transpose(2, 1, 0), np.vstack([affine, (0, 0, 0, 1)]))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_turning_agrees_with_nibabel(orientation):
    volume = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    affine = affine_of(orientation)
    geometry = Geometry((0.7, 0.9, 5.0), (affine,))
    assert geometry.orientation == orientation == nibabel_codes(affine)
    turn = Turn.between(orientation, "RAS", 3)

    canonical = nib.as_closest_canonical(nifti(volume, affine))
    turned = turn.apply(volume)
    np.testing.assert_array_equal(turned.transpose(2, 1, 0), canonical.get_fdata())
    moved = turn.turn_geometry(geometry, volume.shape)
    np.testing.assert_allclose(moved.affines[0], canonical.affine[:3], atol=1e-12)
    assert moved.spacing == tuple(canonical.header.get_zooms())
    assert moved.spacing[::-1] == turn.reorder((5.0, 0.9, 0.7))

    np.testing.assert_array_equal(turn.undo(turned), volume)
    channels = np.stack([volume, -volume])
    np.testing.assert_array_equal(turn.undo(turn.apply(channels)), channels)
    there = Turn.between(orientation, "PSL", 3).apply(volume)
    np.testing.assert_array_equal(Turn.between("PSL", "RAS", 3).apply(there), turned)


def test_oblique_volumes_have_the_closest_axes():
    """Also halfway between two axes, every axis has a line of its own."""
    for degrees in (10, 30, 44.9, 45, 45.1):
        angle = np.deg2rad(degrees)
        rotation = np.eye(3)
        rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        affine = np.column_stack([rotation * (0.7, 0.9, 5.0), np.zeros(3)])
        codes = Geometry(None, (affine,)).orientation
        assert {line for line in LINES for code in codes if code in line} == set(LINES)
        if degrees != 45:
            assert codes == nibabel_codes(affine)


def test_volumes_without_orientation_and_pictures_are_not_turned():
    volume, picture = np.zeros((2, 3, 4)), np.zeros((3, 5, 6))
    for old, new in ((None, "RAS"), ("LPS", None)):
        assert Turn.between(old, new, 3).apply(volume) is not None
        assert Turn.between(old, new, 3).apply(volume).shape == (2, 3, 4)
    assert Turn.between(None, None, 2).apply(picture).shape == (3, 5, 6)


def test_sizes_and_spacings():
    """By hand: 20 × 5 / 2.5 = 40, 33 × 0.7 / 1.4 = 16.5, one slice stays one."""
    assert resampled_size((20, 34, 1), (5, 0.7, 1), (2.5, 1.4, 8)) == (40, 17, 1)
    assert resampled_spacing((20, 33), (5.0, 0.7), (40, 17)) == (2.5, pytest.approx(23.1 / 17))
    # An axis that is not resampled has exactly the spacing of the file.
    assert resampled_spacing((33, 20), (0.1, 0.7), (33, 10)) == (0.1, 1.4)


@pytest.mark.parametrize(
    ("spacing", "target", "axis"),
    [
        ((5, 1, 1), (5, 1, 1), 0),
        ((3, 1, 1), (1, 1, 1), 0),
        ((2.9, 1, 1), (1, 1, 1), None),
        ((1, 1, 1), (1, 1, 4), 2),  # that of the grid
        ((5, 1, 1), (1, 1, 5), 0),  # that of the file
        ((5, 5, 1), (1, 1, 1), None),  # two: within a line, nothing is coarse
    ],
)
def test_the_coarse_axis(spacing, target, axis):
    assert coarse_axis(spacing, target) == axis


def test_the_same_grid_changes_nothing(rng):
    image, label = rng.normal(size=(2, 4, 5, 6)), rng.integers(0, 3, (4, 5, 6))
    assert resample_image(image, (4, 5, 6), 0) is image
    assert resample_label(label, (4, 5, 6), None) is label


@pytest.mark.parametrize("size", [(14, 18, 11), (7, 20, 25)])
def test_images_are_resampled_by_cubic_splines(rng, size):
    """Enlarged, they equal scipy's zoom of all axes together."""
    image = rng.normal(size=(1, 7, 9, 11)).astype(np.float32)
    scale = np.divide(size, image.shape[1:])
    expected = ndimage.zoom(image[0], scale, order=3, mode="nearest", grid_mode=True)
    expected = expected.clip(image.min(), image.max())
    resampled = resample_image(image, size, None)
    assert resampled.dtype == np.float32
    np.testing.assert_allclose(resampled[0], expected, atol=2e-6)


@pytest.mark.parametrize("size", [(30, 60), (30, 27), (30, 13), (45, 5)])
def test_a_ramp_stays_a_ramp(size):
    """A ramp over x has the values of the new centers, except near the edges."""
    old = np.arange(40.0)
    image = np.broadcast_to(old, (1, 30, 40)).astype(np.float32)
    expected = (np.arange(size[1]) + 0.5) * 40 / size[1] - 0.5
    inside = (expected > 12) & (expected < 27)
    assert inside.any()
    row = resample_image(image, size, None)[0, 7]
    np.testing.assert_allclose(row[inside], expected[inside], atol=1e-3)


def test_fine_noise_is_averaged_where_voxels_become_larger(rng):
    """Voxels four times as wide average about 4 × 4 values: a quarter of their spread."""
    noise = rng.normal(size=(1, 128, 128)).astype(np.float32)
    assert 0.1 < resample_image(noise, (32, 32), None).std() < 0.35


def test_slices_far_apart_are_not_mixed(rng):
    """By hand: 3 slices become 5, whose centers lie in slices 0, 0, 1, 2, 2; 4 become 2."""
    image = rng.normal(size=(1, 3, 6, 8)).astype(np.float32)
    np.testing.assert_array_equal(resample_image(image, (5, 6, 8), 0), image[:, [0, 0, 1, 2, 2]])
    across = resample_image(image, (3, 12, 2), 2)
    middle = ndimage.zoom(image[0, 1][:, [2, 6]], (2, 1), order=3, mode="nearest", grid_mode=True)
    middle = middle.clip(image.min(), image.max())
    np.testing.assert_allclose(across[0, 1], middle, atol=2e-6)
    label = rng.integers(0, 3, (3, 6, 8)).astype(np.uint8)
    np.testing.assert_array_equal(resample_label(label, (5, 6, 8), 0), label[[0, 0, 1, 2, 2]])


@pytest.mark.parametrize("size", [(5, 1, 1), (1, 9, 4), (3, 9, 2)])
def test_one_slice_and_one_voxel(size):
    image = np.full((1, 1, 6, 8), 2.5, np.float32)
    np.testing.assert_allclose(resample_image(image, size, None), 2.5, rtol=1e-6)
    label = np.full((1, 6, 8), 3, np.int16)
    np.testing.assert_array_equal(resample_label(label, size, None), np.full(size, 3))


@pytest.mark.parametrize("size", [(9, 20, 13), (4, 5, 30), (3, 4, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_labels_are_the_largest_of_linear_shares(rng, size, dtype):
    """As PyTorch interpolates one-hot maps; where two shares are nearly equal, either may win.

    Class 300 stands for ignored pixels, which have a share like any other.
    """
    top = 255 if dtype == np.uint8 else 300
    values = np.array([0, 1, 7, top], dtype)
    smooth = ndimage.gaussian_filter(rng.normal(size=(4, 6, 10, 11)), (0, 1, 1, 1))
    label = values[smooth.argmax(0)]
    one_hot = torch.from_numpy((label == values[:, None, None, None]).astype(np.float32))
    shares = F.interpolate(one_hot[None], size, mode="trilinear", align_corners=False)[0]
    best, second = shares.sort(0, descending=True).values[:2]
    clear = (best - second).numpy() > 1e-5
    resampled = resample_label(label, size, None)
    assert resampled.dtype == dtype
    np.testing.assert_array_equal(resampled[clear], values[shares.argmax(0).numpy()][clear])
    assert clear.mean() > 0.9


@pytest.mark.parametrize(("radius", "least"), [(12, 0.96), (20, 0.98)])
def test_a_sphere_there_and_back(radius, least):
    """Through voxels 1.5 times as wide; the way back is that of class probabilities.

    The surface is displaced by less than a quarter voxel (a sixth of a wide one) on average, so
    that about 3 / 2 × 1 / 4 / radius of the Dice is lost.
    """
    shape = (54, 57, 58)
    center = np.array([26.3, 28.0, 29.6])[:, None, None, None]
    sphere = (np.linalg.norm(np.indices(shape) - center, axis=0) < radius).astype(np.uint8)
    there = resample_label(sphere, resampled_size(shape, (1, 1, 1), (1.5, 1.5, 1.5)), None)
    shares = torch.from_numpy(np.stack([there == 0, there == 1]).astype(np.float32))
    back = F.interpolate(shares[None], shape, mode="trilinear", align_corners=False)[0]
    difference = (back.argmax(0).numpy() != sphere).sum()
    assert 1 - difference / (2 * sphere.sum()) > least
    assert difference / (4 * np.pi * radius**2) < 1 / 4
