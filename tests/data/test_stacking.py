"""Channels in several files are brought to the grid of the first one."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from crkd_cli.data.cases import ImageFile
from crkd_cli.data.raw.formats import Volume, read_image
from crkd_cli.data.stacking import stack
from crkd_cli.errors import CrkdError

IMAGES = (ImageFile(Path("a.nii"), channel="T1"), ImageFile(Path("b.nii"), channel="T2"))
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([1.2, 0.8, 2.0]), [-9, 4, 2]
)
MOVED = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.25, -0.1, 0.2) @ np.diag([0.9, 1.1, 1.5]), [-8, 5, 1]
)


@pytest.fixture
def volume(tmp_path, rng):
    """volume((4, 5, 6), AFFINE): random values [x, y, z], as read from a file."""

    def make(shape, affine, values=None, dtype=np.float32) -> Volume:
        values = rng.normal(3, 1, shape) if values is None else values
        nib.save(nib.Nifti1Image(values.astype(dtype), affine), tmp_path / "x.nii")
        return read_image(tmp_path / "x.nii")

    return make


def test_the_same_grid_is_not_interpolated(volume):
    first, second = volume((6, 5, 4), OBLIQUE), volume((6, 5, 4), OBLIQUE, dtype=np.uint8)
    shifted = volume((6, 5, 4), OBLIQUE + _shift(0.3))
    result = stack([first, second, shifted], [*IMAGES, IMAGES[0]])
    np.testing.assert_array_equal(
        result.array, np.concatenate([first.array, second.array, shifted.array])
    )
    assert result.array.dtype == np.float32
    assert (result.geometry, result.is_resampled) == (first.geometry, False)


def _shift(mm: float) -> np.ndarray:
    matrix = np.zeros((4, 4))
    matrix[0, 3] = mm
    return matrix


def test_one_file_is_not_copied(volume):
    first = volume((6, 5, 4), OBLIQUE)
    assert stack([first], IMAGES[:1]) is first


def test_a_channel_in_another_orientation_is_turned(volume):
    first = volume((6, 5, 4), OBLIQUE)
    image = nib.Nifti1Image(first.array[0].T, OBLIQUE)
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("IPR"))
    second = volume(turned.shape, turned.affine, np.asarray(turned.dataobj))
    result = stack([first, second], IMAGES)
    np.testing.assert_array_equal(result.array[1], first.array[0])
    assert not result.is_resampled


def test_another_grid_is_interpolated_as_itk_does(volume):
    """Inside of the channel; beyond its edges, there is its smallest value."""
    first, second = volume((9, 8, 7), OBLIQUE), volume((11, 9, 10), MOVED)
    result = stack([first, second], IMAGES)
    assert result.is_resampled
    np.testing.assert_array_equal(result.array[0], first.array[0])

    reference, moving = (_itk(part, affine) for part, affine in ((first, OBLIQUE), (second, MOVED)))
    lowest = float(second.array.min())
    expected = sitk.GetArrayFromImage(
        sitk.Resample(moving, reference, sitk.Transform(), sitk.sitkLinear, lowest)
    )
    inside = sitk.GetArrayFromImage(
        sitk.Resample(moving * 0 + 1, reference, sitk.Transform(), sitk.sitkLinear, 0)
    )
    assert 0.3 < (inside == 1).mean() < 1
    close = np.isclose(result.array[1], expected, atol=1e-4)
    assert close.mean() > 0.98  # ITK and this differ in which voxels are on the edge
    assert result.array[1].min() == lowest


def _itk(volume: Volume, affine: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.array[0])
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def test_linear_values_are_exact(volume):
    """A value that is linear in the position is the same on every grid."""

    def positions(shape, affine):
        index = np.moveaxis(np.indices(shape), 0, -1)
        return nib.affines.apply_affine(affine, index) @ [1.0, -2.0, 0.5]

    coarse = np.diag([2.0, 2.0, 3.0, 1.0])
    fine = nib.affines.from_matvec(np.diag([1.0, 1.0, 1.0]), [4, 4, 6])
    first = volume((5, 6, 7), fine, positions((5, 6, 7), fine))
    second = volume((10, 10, 8), coarse, positions((10, 10, 8), coarse))
    result = stack([first, second], IMAGES)
    np.testing.assert_allclose(result.array[1], result.array[0], atol=1e-4)


def test_channels_that_do_not_overlap_are_refused(volume):
    first, second = volume((6, 5, 4), OBLIQUE), volume((6, 5, 4), OBLIQUE + _shift(90))
    message = r"b\.nii does not overlap the first channel a\.nii: it has spacing"
    with pytest.raises(CrkdError, match=message):
        stack([first, second], IMAGES)


FLAT = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]], np.float64)


@pytest.mark.parametrize("affine", [None, OBLIQUE, FLAT])
def test_other_shapes_without_positions_are_refused(volume, affine):
    other = FLAT if affine is FLAT else None
    first, second = volume((6, 5, 4), affine), volume((6, 5, 5), other)
    message = r"b\.nii has shape \(5, 5, 6\), the first channel a\.nii \(4, 5, 6\), and the"
    with pytest.raises(CrkdError, match=message):
        stack([first, second], IMAGES)
