"""ACDC in both layouts. The real cases exist in both, so that each verifies the other."""

import gzip
import shutil

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from crkd_cli.data.obtain import choose_source
from crkd_cli.errors import CrkdError


@pytest.fixture
def nifti(tmp_path, rng):
    """The challenge's layout: a labeled patient in training, and an unlabeled one in testing."""
    for part, patient, frames in (
        ("training", "patient007", (1, 13)),
        ("testing", "patient101", (4, 2)),
    ):
        folder = tmp_path / "database" / part / patient
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text(f"ED: {frames[0]}\nES: {frames[1]}\nGroup: NOR\n")
        for frame in frames:
            image = sitk.GetImageFromArray(rng.integers(0, 600, (3, 20, 18)).astype(np.int16))
            image.SetSpacing((1.5, 1.25, 8.0))
            sitk.WriteImage(image, str(folder / f"{patient}_frame{frame:02d}.nii.gz"))
            if part == "training":
                label = sitk.GetImageFromArray(rng.integers(0, 4, (3, 20, 18)).astype(np.uint8))
                label.CopyInformation(image)
                sitk.WriteImage(label, str(folder / f"{patient}_frame{frame:02d}_gt.nii.gz"))
        # All frames together, which are not a case.
        (folder / f"{patient}_4d.nii.gz").write_bytes(gzip.compress(b"frames"))
    return tmp_path / "database"


def test_challenge_layout(nifti, prepared):
    store = prepared("acdc", nifti)
    ids = ["patient007_frame01", "patient007_frame02", "patient101_frame01", "patient101_frame02"]
    assert list(store.cases) == ids
    assert store.cases[ids[1]].source == "training/patient007/patient007_frame13.nii.gz"
    # ED first, although its frame number is higher.
    assert store.cases[ids[2]].source == "testing/patient101/patient101_frame04.nii.gz"
    assert [store.cases[case].labeled for case in ids] == [True, True, False, False]
    assert store.cases[ids[0]].spacing_mm == (8.0, 1.25, 1.5)
    image = sitk.ReadImage(str(nifti / store.cases[ids[1]].source))
    raw = sitk.GetArrayFromImage(image).astype(float)
    expected = (raw - raw.min()) / (raw.max() - raw.min())
    np.testing.assert_allclose(store.image(ids[1])[0], expected, atol=1e-6)
    assert store.image(ids[1]).dtype == np.float32
    assert store.spec.class_names[1] == "right ventricle"


def test_decompressed_nifti_files_are_found(nifti, prepared):
    for path in nifti.rglob("*_frame*.nii.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert len(prepared("acdc", nifti).cases) == 4


def test_info_without_frames_is_an_error(nifti):
    (nifti / "training/patient007/Info.cfg").write_text("Group: NOR\n")
    with pytest.raises(CrkdError, match=r"Info\.cfg does not state ED and ES"):
        choose_source("acdc", nifti, nifti, None, False).find(nifti)


def test_h5_slices_are_not_volumes(tmp_path):
    (tmp_path / "slices").mkdir()
    with h5py.File(tmp_path / "slices/patient001_frame01_slice_1.h5", "w") as file:
        file["image"] = np.zeros((4, 4))
    message = r"no ACDC data in .*: expected patientNNN folders with Info.cfg"
    with pytest.raises(CrkdError, match=message):
        choose_source("acdc", tmp_path, tmp_path, None, False).find(tmp_path)


@pytest.mark.realdata
def test_both_layouts_of_the_real_cases_agree(shared_data, prepared, tmp_path, capfd):
    nifti = prepared("acdc", shared_data / "acdc_nifti")
    assert "WARNING" not in capfd.readouterr().err
    shutil.move(nifti.root, nifti.root.with_name("nifti"))
    nifti.root = nifti.root.with_name("nifti")
    h5 = prepared("acdc", shared_data / "acdc")
    assert len(h5.cases) == 14
    assert len(nifti.cases) == 6
    for case in nifti.cases:
        assert np.abs(nifti.image(case) - h5.image(case)).max() <= 1e-4
        np.testing.assert_array_equal(nifti.label(case), h5.label(case))
        with h5py.File(shared_data / "acdc" / h5.cases[case].source) as file:
            np.testing.assert_allclose(h5.image(case)[0], file["image"][()], atol=1e-7)
        assert h5.cases[case].spacing_mm is None
    spacing = {case[:10]: info.spacing_mm for case, info in nifti.cases.items()}
    for patient, spacing_mm in spacing.items():  # compared with pixdim in the bytes of the header
        path = next((shared_data / "acdc_nifti/training" / patient).glob("*_frame01.nii.gz"))
        pixdim = np.frombuffer(gzip.decompress(path.read_bytes()), "<f4", 3, offset=80)
        assert spacing_mm == pytest.approx(pixdim[::-1].tolist(), rel=1e-6)
        assert spacing_mm[0] >= 5
