"""Labels whose files have other axes than their images are turned to them."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from crkd_cli.data.alignment import align_label
from crkd_cli.data.raw.formats import read_image, read_label
from crkd_cli.errors import CrkdError

ANGLE = np.deg2rad(12)
OBLIQUE = np.array(
    [[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]]
)
AFFINE = nib.affines.from_matvec(OBLIQUE @ np.diag([-0.7, -0.9, 5]), [-12.5, 30.25, 7.75])


def aligned(root: Path) -> np.ndarray:
    image, label = root / "a.nii", root / "a_seg.nii"
    return align_label(read_label(label), read_image(image), label, image)


@pytest.fixture
def label(tmp_path, rng) -> nib.Nifti1Image:
    """A label like its image `a.nii`, which is not written."""
    nib.save(nib.Nifti1Image(rng.normal(size=(5, 6, 7)), AFFINE), tmp_path / "a.nii")
    return nib.Nifti1Image(rng.integers(0, 3, (5, 6, 7)).astype(np.uint8), AFFINE)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SAR", "IRP"])
def test_a_turned_label(tmp_path, label, orientation):
    codes = nib.orientations.axcodes2ornt(orientation)
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), codes)
    nib.save(label.as_reoriented(turn), tmp_path / "a_seg.nii")
    np.testing.assert_array_equal(aligned(tmp_path).T, label.get_fdata())


def test_labels_elsewhere_are_refused(tmp_path, label):
    """Turned and moved by a voxel; and of another size."""
    canonical = nib.as_closest_canonical(label)
    canonical.affine[2, 3] += 5
    nib.save(canonical, tmp_path / "a_seg.nii")
    with pytest.raises(CrkdError, match=r"a_seg\.nii lies up to .* mm away"):
        aligned(tmp_path)
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 6), np.uint8), AFFINE), tmp_path / "a_seg.nii")
    with pytest.raises(CrkdError, match="image and label must match"):
        aligned(tmp_path)
