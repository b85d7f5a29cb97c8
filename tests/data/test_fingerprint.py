"""What is measured from the headers of image files, against nibabel."""

import h5py
import nibabel as nib
import numpy as np
import pytest

from crkd_cli.data.cases import labeled_case
from crkd_cli.data.description import Description
from crkd_cli.data.fingerprint import Fingerprint, ImageHeader, measure
from crkd_cli.data.store import ChannelInfo, DatasetSpec

AXES = {"R": (1, 0, 0), "A": (0, 1, 0), "S": (0, 0, 1), "L": (-1, 0, 0), "P": (0, -1, 0)}


def spec(spacing=None):
    return DatasetSpec(
        name="mine",
        source="folder",
        classes=(),
        channels=(ChannelInfo(modality="MR", intensity="zscore"),),
        dims=3,
        description=Description(spacing=spacing),
    )


def nifti(path, codes, shape=(6, 5, 4), spacing=(0.5, 1.0, 3.0)):
    """Write a volume whose axes x, y and z point to `codes`."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([AXES[code] for code in codes]).T * spacing
    nib.save(nib.Nifti1Image(np.zeros(shape), affine), path)
    return labeled_case(path.name, path.name, path, None)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "SAL"])
@pytest.mark.parametrize("target", ["RAS", "LAS", "ASL"])
def test_axes_are_turned_as_nibabel_does(tmp_path, codes, target):
    case = nifti(tmp_path / "a.nii", codes)
    (header,) = measure([case], spec()).images
    assert header == ImageHeader((4, 5, 6), (3.0, 1.0, 0.5), codes)
    image = nib.load(tmp_path / "a.nii")
    start = nib.orientations.io_orientation(image.affine)
    end = nib.orientations.axcodes2ornt(target)
    image = image.as_reoriented(nib.orientations.ornt_transform(start, end))
    turned = header.turned(target)
    assert turned.size == image.shape[::-1]
    assert turned.spacing == pytest.approx(image.header.get_zooms()[::-1])
    assert turned.orientation == target == "".join(nib.aff2axcodes(image.affine))
    assert header.turned("native") == header


def test_what_cannot_be_read_is_left_out_and_what_is_not_stated_described(tmp_path):
    (tmp_path / "bad.nii").write_bytes(b"nothing")
    nib.save(nib.Nifti1Image(np.zeros((6, 5, 4)), None), tmp_path / "plain.nii")
    nib.save(nib.Nifti1Image(np.zeros((6, 5)), np.eye(4)), tmp_path / "flat.nii")
    names = ("bad.nii", "plain.nii", "flat.nii", "missing.nii")
    cases = [labeled_case(name, name, tmp_path / name, None) for name in names]
    huge = nifti(tmp_path / "huge.nii", "RAS", spacing=(1e5, 1, 1))
    expected = (ImageHeader((4, 5, 6), (1.0, 1.0, 1.0)), ImageHeader((4, 5, 6), None, "RAS"))
    assert measure([*cases, huge], spec()) == Fingerprint(3, expected)


def test_described_spacing(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["image"] = np.zeros((4, 5, 6))
    case = labeled_case("x", "x", tmp_path / "x.h5", None)
    assert measure([case], spec((3.0, 2.0, 1.0))).images == (
        ImageHeader((4, 5, 6), (3.0, 2.0, 1.0)),
    )
    assert measure([case], spec()).images == (ImageHeader((4, 5, 6)),)
