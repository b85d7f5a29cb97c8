"""Prediction of DICOM series: masks on their grid, and DICOM Segmentations."""

import errno
import os
from pathlib import Path

import highdicom
import msgspec
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import BasicTextSRStorage, DigitalXRayImageStorageForPresentation

from crkd_cli.cli.bars import progress
from crkd_cli.config import Frame
from crkd_cli.data.description import Channel, Description
from crkd_cli.data.plan import Plan
from crkd_cli.data.store import ChannelInfo, DatasetSpec, numbered_classes
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.inference.case_predictor import PredictOptions
from crkd_cli.inference.predict import predict
from tests.conftest import FLAT
from tests.dicom import (
    IN_PLANE,
    save,
    slice_dataset,
    uid,
    write_enhanced,
    write_object,
    write_series,
    write_study,
)

SHAPE = (9, 17, 20)  # z, y, x
OBLIQUE = ((0.8, 0.6, 0.0), (0.6, -0.8, 0.0))
FRAME = Frame(patch=(16, 16, 16))
ALL = PredictOptions(overlays=True, probabilities=True, dicom_seg=True)
SOLID = DatasetSpec(
    name="solid",
    source="folder",
    classes=numbered_classes(("background", "Kugel ●")),
    channels=(ChannelInfo(modality="CT", intensity="zscore"),),
    dims=3,
)


def run(source: Path, checkpoint: Path, lines: list[str] | None = None, **options):
    notify = (lines if lines is not None else []).append
    return predict(source, [checkpoint], notify, progress, **options)


@pytest.fixture
def checkpoint(make_checkpoint):
    return make_checkpoint(SOLID, FRAME)


@pytest.fixture
def voxels(rng) -> np.ndarray:
    return rng.normal(1000, 200, SHAPE).astype(np.int16)


def files_of(folder: Path) -> list[str]:
    """Return the files in `folder` except label tables, which are there if there are masks."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return sorted(str(file.relative_to(folder)) for file in files if file.stem[:7] != "labels-")


def segmentation_on_grid_of(image: sitk.Image, file: Path) -> np.ndarray:
    """Return the class numbers [z, y, x] of a Segmentation on the grid of an image of ITK."""
    segmentation = highdicom.seg.segread(file)
    labels = np.zeros(image.GetSize()[::-1], np.uint8)
    volume = segmentation.get_volume(combine_segments=True)
    for index in np.argwhere(volume.array):
        position = volume.affine[:3] @ [*index, 1]
        x, y, z = image.TransformPhysicalPointToIndex(position.tolist())
        labels[z, y, x] = volume.array[tuple(index)]
    return labels


@pytest.mark.parametrize(
    ("axes", "plan"),
    [
        pytest.param(IN_PLANE, None, marks=pytest.mark.slow),
        (OBLIQUE, None),
        pytest.param(
            OBLIQUE,
            Plan(orientation="SAR", spacing=(1.5, 1.0, 0.5), network="3D"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["straight", "oblique", "resampled"],
)
def test_a_mask_lies_on_the_grid_of_its_series(scans, make_checkpoint, voxels, axes, plan):
    """As ITK reads the series, and as nibabel reads both transforms of the mask."""
    files = write_series(scans / "anna", voxels, axes=axes)
    checkpoint = make_checkpoint(msgspec.structs.replace(SOLID, plan=plan), FRAME)
    result = run(scans, checkpoint, options=ALL)
    assert (result.written, result.failures) == (1, [])
    assert files_of(result.folder) == [
        "anna.dcm",
        "anna.nii.gz",
        "overlays/anna.png",
        "probabilities/anna.npz",
    ]
    image = sitk.ReadImage([str(file) for file in files])
    mask = sitk.ReadImage(str(result.folder / "anna.nii.gz"))
    assert mask.GetSize() == image.GetSize()
    for name in ("Spacing", "Origin", "Direction"):
        actual, expected = (getattr(volume, f"Get{name}")() for volume in (mask, image))
        np.testing.assert_allclose(actual, expected, atol=1e-4, err_msg=name)
    header = nibabel.load(result.folder / "anna.nii.gz").header
    np.testing.assert_allclose(header.get_sform(), header.get_qform(), atol=1e-4)
    assert (header["sform_code"], header["qform_code"]) == (1, 1)
    labels = sitk.GetArrayFromImage(mask)
    assert 0.02 < labels.mean() < 0.98
    with np.load(result.folder / "probabilities" / "anna.npz", allow_pickle=False) as arrays:
        probabilities, affine = arrays["probabilities"], arrays["affine"]
    certain = np.abs(probabilities[1] - 0.5) > 0.001
    assert np.array_equal(probabilities.argmax(0)[certain], labels[certain])
    np.testing.assert_allclose(affine, header.get_sform(), atol=1e-4)
    assert np.array_equal(segmentation_on_grid_of(image, result.folder / "anna.dcm"), labels)


@pytest.mark.slow
def test_a_segmentation_refers_to_its_series(scans, checkpoint, voxels):
    files = write_series(scans / "anna", voxels)
    result = run(scans, checkpoint, options=PredictOptions(dicom_seg=True))
    segmentation = highdicom.seg.segread(result.folder / "anna.dcm")
    references = segmentation.get_source_image_uids()
    sources = [pydicom.dcmread(file) for file in files]
    assert {reference[2] for reference in references} == {one.SOPInstanceUID for one in sources}
    assert segmentation.StudyInstanceUID == sources[0].StudyInstanceUID
    assert segmentation.get_segment_description(1).segment_label == "Kugel ●"
    labels = segmentation.get_pixels_by_source_instance(
        [one.SOPInstanceUID for one in sources],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(result.folder / "anna.nii.gz")))
    assert np.array_equal(labels, mask)


def test_several_series_in_a_folder_and_one_that_is_bad(scans, checkpoint, voxels):
    write_series(scans, voxels, name="one", file_names="a{}")
    write_series(scans, voxels[::-1], name="two", file_names="b{}")
    write_series(scans, voxels, name="gap", file_names="c{}", skip=(4,))
    lines = []
    result = run(scans, checkpoint, lines, options=PredictOptions(dicom_seg=True))
    assert result.written == 2
    (failure,) = result.failures
    assert "lacks 1 slice" in failure
    assert "\n" not in failure
    names = files_of(result.folder)
    assert [Path(name).suffix for name in names] == [".dcm", ".gz"] * 2
    assert all(name.startswith("series-") for name in names)


@pytest.mark.slow
def test_a_multi_frame_file(scans, make_checkpoint, voxels):
    spec = msgspec.structs.replace(
        SOLID, channels=(ChannelInfo(modality="MR", intensity="zscore"),)
    )
    order = (4, 2, 8, 0, 1, 3, 5, 6, 7)
    file = write_enhanced(scans / "enhanced", voxels, order=order)
    checkpoint = make_checkpoint(spec, FRAME)
    result = run(file, checkpoint, options=PredictOptions(dicom_seg=True))
    assert (result.written, result.failures) == (1, [])
    assert files_of(result.folder) == ["enhanced.dcm", "enhanced.nii.gz"]
    mask = sitk.ReadImage(str(result.folder / "enhanced.nii.gz"))
    labels = segmentation_on_grid_of(mask, result.folder / "enhanced.dcm")
    assert np.array_equal(labels, sitk.GetArrayFromImage(mask))


@pytest.mark.slow
def test_radiographs(scans, make_checkpoint, rng):
    """Two images of a series without positions are two cases in 2D."""
    checkpoint = make_checkpoint(FLAT, Frame(resize=(32, 32)))
    for name in ("left", "right"):
        dataset = slice_dataset(rng.integers(0, 4000, (33, 21)), "views", 0)
        dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
        dataset.SOPInstanceUID, dataset.Modality = uid(name), "DX"
        dataset.PixelSpacing = [0.2, 0.1]
        save(dataset, scans / f"{name}.dcm")
    result = run(scans, checkpoint, options=PredictOptions(dicom_seg=True))
    assert (result.written, result.failures) == (2, [])
    for name in ("left", "right"):
        mask = sitk.ReadImage(str(result.folder / f"{name}.nii.gz"))
        assert mask.GetSize() == (21, 33)
        assert mask.GetSpacing() == pytest.approx((0.1, 0.2))
        labels = sitk.GetArrayFromImage(mask)
        assert 0.02 < labels.mean() < 0.98
        segmentation = highdicom.seg.segread(result.folder / f"{name}.dcm")
        frames = segmentation.get_pixels_by_source_instance([uid(name)], combine_segments=True)
        assert np.array_equal(frames, labels[None])


@pytest.mark.slow
def test_a_series_folder_is_predicted_like_a_folder_of_series(scans, checkpoint, voxels):
    write_series(scans / "anna", voxels)
    together = run(scans, checkpoint)
    alone = run(scans / "anna", checkpoint)
    (mask,) = alone.folder.glob("*.nii.gz")
    assert alone.folder.name == "anna-masks"
    assert mask.read_bytes() == (together.folder / "anna.nii.gz").read_bytes()
    lines: list[str] = []
    assert run(scans, checkpoint, lines, out=scans.with_name("again")).written == 1
    assert (
        f"note: left out (predicted masks of the images in anna/): anna-masks/{mask.name}" in lines
    )


@pytest.mark.slow
def test_a_series_of_another_modality_is_refused(scans, checkpoint, voxels):
    write_series(scans / "anna", voxels, name="anna", tags={"Modality": "MR"})
    write_series(scans / "ben", voxels, name="ben")
    result = run(scans, checkpoint)
    assert result.written == 1
    (failure,) = result.failures
    assert "is MR, but the model was trained on CT" in failure


@pytest.mark.slow
def test_patients_are_named_in_segmentations_alone(scans, checkpoint, voxels):
    """Neither in masks and pictures nor in messages, also those of errors."""
    tags = {"PatientName": "Miller^Zoe", "PatientID": "0815-7", "SeriesInstanceUID": uid("x")}
    write_series(scans / "anna", voxels, tags=tags)
    write_series(scans / "gap", voxels, name="gap", skip=(4,), tags={"PatientName": "Miller^Zoe"})
    lines: list[str] = []
    result = run(scans, checkpoint, lines, options=ALL)
    assert (result.written, len(result.failures)) == (1, 1)
    text = "\n".join([*lines, *result.failures])
    for secret in ("Miller", "0815-7", "19700102", uid("x")):
        assert secret not in text
        for name in files_of(result.folder):
            content = (result.folder / name).read_bytes()
            assert (secret.encode() in content) == name.endswith(".dcm"), (name, secret)
    # The masks are compressed, so their headers are searched.
    header = nibabel.load(result.folder / "anna.nii.gz").header
    assert b"Miller" not in header.binaryblock


@pytest.mark.slow
def test_paths_that_name_the_patient_are_not_repeated(scans, checkpoint, voxels):
    """Neither in the names of masks, nor in messages; only errors name the file."""
    tags = {"PatientName": "Miller^Zoe", "StudyInstanceUID": ""}
    write_series(scans / "Miller_Zoe" / "ct", voxels, tags=tags)
    lines: list[str] = []
    result = run(scans, checkpoint, lines)
    assert result.written == 1
    assert "Miller" not in "".join([*lines, *files_of(result.folder)])
    options = PredictOptions(dicom_seg=True, overwrite=True)
    (failure,) = run(scans, checkpoint, options=options).failures
    assert failure.startswith(f"{scans}/Miller_Zoe/ct/IM")
    assert "has no StudyInstanceUID" in failure


CHANNELS = (
    ChannelInfo(name="T1", modality="MR", intensity="zscore"),
    ChannelInfo(name="FLAIR", modality="MR", intensity="zscore"),
)
BY_CHANNEL = Description(
    channels=(Channel("T1"), Channel("FLAIR")), series={"FLAIR": "*flair*", "T1": "t1 mprage"}
)


@pytest.mark.slow
def test_channels_are_chosen_by_their_descriptions(scans, make_checkpoint, rng):
    """They are the two series of a study, and equal two numbered files."""
    spec = msgspec.structs.replace(SOLID, channels=CHANNELS, description=BY_CHANNEL)
    checkpoint = make_checkpoint(spec, FRAME)
    numbered = scans.with_name("numbered")
    numbered.mkdir()
    for name, description, number in (("a", "T2 FLAIR", 1), ("b", "T1 MPRAGE", 0)):
        write_study(scans / "anna", rng.integers(0, 900, SHAPE), {name: description})
        files = sorted((scans / "anna" / name).iterdir(), reverse=True)
        image = sitk.ReadImage([str(file) for file in files])
        sitk.WriteImage(image, str(numbered / f"x_000{number}.nii.gz"))
    result = run(scans, checkpoint, options=PredictOptions(dicom_seg=True))
    assert (result.written, result.failures) == (1, [])
    assert files_of(result.folder) == ["anna.dcm", "anna.nii.gz"]
    expected = run(numbered, checkpoint)
    masks = [expected.folder / "x.nii.gz", result.folder / "anna.nii.gz"]
    arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(mask))) for mask in masks]
    assert np.array_equal(*arrays)
    segmentation = pydicom.dcmread(result.folder / "anna.dcm")
    (source,) = segmentation.ReferencedSeriesSequence  # that of the first channel
    assert source.SeriesInstanceUID == uid("anna b")


@pytest.mark.slow
def test_a_study_without_a_channel_does_not_stop_the_others(scans, make_checkpoint, voxels):
    spec = msgspec.structs.replace(SOLID, channels=CHANNELS, description=BY_CHANNEL)
    write_study(scans / "anna", voxels, {"a": "FLAIR", "b": "T1 MPRAGE", "c": "T2"})
    write_study(scans / "ben", voxels, {"a": "FLAIR", "c": "T2"})
    result = run(scans, make_checkpoint(spec, FRAME))
    assert files_of(result.folder) == ["anna.nii.gz"]
    (failure,) = result.failures
    assert failure.startswith(f"{scans}/ben/a has no DICOM series for the channel T1")


@pytest.mark.slow
def test_a_single_series_needs_no_choice(scans, make_checkpoint, voxels):
    """The series that the description chooses has another name in another hospital."""
    spec = msgspec.structs.replace(SOLID, description=Description(series="CT thin"))
    checkpoint = make_checkpoint(spec, FRAME)
    write_series(scans / "a", voxels, name="a", tags={"SeriesDescription": "Abdomen 1.0"})
    assert run(scans, checkpoint).written == 1
    write_series(scans / "b", voxels, name="b")
    lines: list[str] = []
    result = run(scans, checkpoint, lines, options=PredictOptions(overwrite=True))
    assert result.written == 1
    assert (result.folder / "b.nii.gz").is_file()
    assert any("left out (another DICOM series than the description says): a" in x for x in lines)


@pytest.mark.parametrize(
    ("name", "message"),
    [("IM0001", "is one slice of a DICOM series; give its folder"), ("report", "a DICOM object")],
)
@pytest.mark.slow
def test_a_file_that_is_no_volume_is_refused(scans, checkpoint, voxels, name, message):
    write_series(scans, voxels)
    write_object(scans / "report", "SR", BasicTextSRStorage)
    with pytest.raises(CrkdError, match=message):
        run(scans / name, checkpoint)


@pytest.mark.slow
def test_existing_segmentations_are_skipped(scans, checkpoint, voxels):
    write_series(scans / "anna", voxels)
    with_segmentation = PredictOptions(dicom_seg=True)
    assert run(scans, checkpoint).written == 1
    assert run(scans, checkpoint).skipped == 1
    assert run(scans, checkpoint, options=with_segmentation).written == 1
    result = run(scans, checkpoint, options=with_segmentation)
    assert (result.written, result.skipped) == (0, 1)


@pytest.mark.slow
def test_a_series_that_no_segmentation_can_refer_to(scans, checkpoint, voxels):
    """Such as an anonymized one. It fails before it is predicted, and without the option works."""
    write_series(scans / "anna", voxels, tags={"StudyInstanceUID": ""})
    result = run(scans, checkpoint, options=PredictOptions(dicom_seg=True))
    (failure,) = result.failures
    assert "has no StudyInstanceUID" in failure
    assert files_of(result.folder) == []
    assert run(scans, checkpoint).written == 1


@pytest.mark.slow
def test_a_full_disk_leaves_no_half_segmentation(scans, checkpoint, voxels, monkeypatch):
    def fill(self, path: Path, *arguments: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_series(scans / "anna", voxels)
    monkeypatch.setattr(highdicom.seg.Segmentation, "save_as", fill)
    with pytest.raises(CrkdError, match=r"anna.dcm: No space left on device; 0 of 1 image written"):
        run(scans, checkpoint, options=PredictOptions(dicom_seg=True))
    assert files_of(scans.with_name("scans-masks")) == []


@pytest.mark.slow
def test_segmentations_need_a_dicom_series(scans, checkpoint, voxels):
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(scans / "anna.nii.gz"))
    with pytest.raises(UsageError, match="contains no DICOM series; drop --dicom-seg"):
        run(scans, checkpoint, options=PredictOptions(dicom_seg=True))


@pytest.mark.slow
def test_segmentations_need_an_extra(scans, checkpoint, voxels, monkeypatch):
    write_series(scans / "anna", voxels)
    monkeypatch.setattr("crkd_cli.inference.dicom_seg.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'needs highdicom; run: pip install "crkd\[dicom\]"'):
        run(scans, checkpoint, options=PredictOptions(dicom_seg=True))
