"""Whether a label lies on its image, over formats and contradictory headers."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from crkd_cli.data.raw.formats import read_image

SHAPE = (40, 30, 20)  # x, y, z
ANGLE = np.pi / 7
TURN = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]])
AFFINE = nib.affines.from_matvec(TURN @ np.diag([0.7, 0.9, 5]), [-12.5, 30.25, 7.75])


def geometry(path, affine, codes=(1, 1)):
    """Return the geometry of a NIfTI file, or of another one that ITK writes."""
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    nib.save(image, path if path.suffix == ".nii" else path.with_suffix(".nii"))
    if path.suffix != ".nii":
        sitk.WriteImage(sitk.ReadImage(str(path.with_suffix(".nii"))), str(path))
    return read_image(path).geometry


@pytest.mark.parametrize("one", [".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("two", [".nii", ".nrrd", ".mhd"])
def test_the_same_grid_in_two_formats(tmp_path, one, two):
    first = geometry(tmp_path / f"a{one}", AFFINE)
    second = geometry(tmp_path / f"b{two}", AFFINE)
    assert first.distance(second, SHAPE) < 1e-3
    moved = AFFINE.copy()
    moved[2, 3] += 2
    assert first.distance(geometry(tmp_path / f"c{two}", moved), SHAPE) == pytest.approx(2, 1e-3)


def test_a_mirrored_label(tmp_path):
    """Mirrored about x: the outermost voxels are as far apart as the image is wide."""
    first = geometry(tmp_path / "a.nii", AFFINE)
    second = geometry(tmp_path / "b.nii", AFFINE @ np.diag([-1, 1, 1, 1]))
    assert first.distance(second, SHAPE) == pytest.approx(2 * 39 * 0.7, 1e-5)


def test_rounding_is_no_difference(tmp_path):
    first = geometry(tmp_path / "a.nii", AFFINE)
    second = geometry(tmp_path / "b.nii", np.round(AFFINE, 3), codes=(0, 1))
    assert first.distance(second, SHAPE) < 0.05


def test_no_orientation_is_no_disagreement(tmp_path):
    """ACDC and files of scripts have codes 0: only the spacing can be compared."""
    stated = geometry(tmp_path / "a.nii", AFFINE)
    unknown = geometry(tmp_path / "b.nii", np.diag([0.7, 0.9, 5, 1]), codes=(0, 0))
    assert unknown.affines == ()
    assert unknown.distance(stated, SHAPE) == stated.distance(unknown, SHAPE) < 1e-5
    other = geometry(tmp_path / "c.nii", np.diag([0.7, 0.9, 6, 1]), codes=(0, 0))
    assert other.distance(stated, SHAPE) == pytest.approx(19)


def test_a_file_that_contradicts_itself_agrees_with_both(tmp_path):
    """ITK keeps one of the two forms when it writes a label."""
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE)
    image.set_qform(AFFINE, 1)
    image.set_sform(np.diag([-1.0, 1, 1, 1]), 1)
    nib.save(image, tmp_path / "x.nii")
    contradictory = read_image(tmp_path / "x.nii").geometry
    for affine in (AFFINE, np.diag([-1.0, 1, 1, 1])):
        assert contradictory.distance(geometry(tmp_path / "a.nii", affine), SHAPE) < 1e-4
    third = geometry(tmp_path / "b.nii", np.diag([1.0, -1, 1, 1]))
    assert contradictory.distance(third, SHAPE) > 10


def test_labels_that_itk_wrote_for_acdc(tmp_path):
    """The sform of ACDC has steps of 1 mm, whatever the voxels are; ITK reads those of pixdim."""
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), None)
    image.header["pixdim"][1:4] = 1.5, 1.5, 10
    image.header["sform_code"], image.header["vox_offset"] = 2, 352
    for axis, name in enumerate(("srow_x", "srow_y", "srow_z")):
        image.header[name] = np.eye(4)[axis]
    (tmp_path / "x.nii").write_bytes(image.header.binaryblock + bytes(4 + np.prod(SHAPE)))
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "x.nii")), str(tmp_path / "y.nrrd"))
    of_image, of_label = (read_image(tmp_path / name).geometry for name in ("x.nii", "y.nrrd"))
    assert of_image.spacing == (1.5, 1.5, 10)
    assert of_label.distance(of_image, SHAPE) < 1e-6


def test_flat_images(tmp_path):
    for name in ("a.nii", "b.nrrd"):
        image = sitk.GetImageFromArray(np.zeros((3, 4), np.uint8))
        image.SetSpacing((0.5, 2.0))
        sitk.WriteImage(image, str(tmp_path / name))
    flat, other = (read_image(tmp_path / name) for name in ("a.nii", "b.nrrd"))
    assert flat.spacing_mm == other.spacing_mm == (2.0, 0.5)
    assert flat.geometry.distance(other.geometry, (4, 3)) == 0


def test_the_description_of_a_geometry(tmp_path):
    left_handed = geometry(tmp_path / "a.nii", np.diag([-0.5, 2, 3, 1]))
    assert str(left_handed) == "spacing (z, y, x) (3.0, 2.0, 0.5), origin (0.0, 0.0, 0.0), axes LAS"
    unknown = geometry(tmp_path / "b.nii", np.diag([0.5, 2, 3, 1]), codes=(0, 0))
    assert str(unknown) == "spacing (z, y, x) (3.0, 2.0, 0.5), orientation unknown"
