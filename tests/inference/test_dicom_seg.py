"""DICOM Segmentations, read back with highdicom."""

import warnings
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.uid import DigitalXRayImageStorageForPresentation

from crkd_cli.data.raw.formats import read_image
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.inference.dicom_seg import check_segmentations, read_tags, write_segmentation
from tests.dicom import IN_PLANE, write_enhanced, write_series

SHAPE = (5, 7, 9)  # z, y, x
OBLIQUE = ((0.8, 0.6, 0.0), (0.6, -0.8, 0.0))
NAMES = ("background", "Leber 肝", "tumor\\core", "absent")


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """A series of SHAPE."""
    return write_series(tmp_path / "series", np.arange(np.prod(SHAPE)).reshape(SHAPE))


def edit(files: list[Path], **tags) -> None:
    """Set tags of all files, valid or not; None removes them."""
    for file in files:
        image = pydicom.dcmread(file)
        with warnings.catch_warnings(action="ignore"):  # about invalid values
            for name, value in tags.items():
                if value is None:
                    delattr(image, name)
                else:
                    setattr(image, name, value)
            image.save_as(file)


def written(file: Path, files: list[Path]) -> np.ndarray:
    """Return the class numbers [z, y, x] of a Segmentation, by the images that it refers to."""
    uids = [str(pydicom.dcmread(path).SOPInstanceUID) for path in files]
    segmentation = highdicom.seg.segread(file)
    assert sorted(uid for _, _, uid in segmentation.get_source_image_uids()) == sorted(uids)
    return segmentation.get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )


@pytest.mark.parametrize("axes", [IN_PLANE, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("z_last", [False, True])
def test_voxels_names_and_references(tmp_path, rng, axes, z_last):
    files = write_series(tmp_path / "series", rng.integers(0, 99, SHAPE), axes=axes)
    image = read_image(files[0], z_last, slices=files)
    labels = rng.integers(0, 3, image.size).astype(np.uint8)
    file = tmp_path / "case.dcm"
    shuffled = [files[plane] for plane in (3, 0, 4, 1, 2)]
    write_segmentation(file, labels, NAMES, image, read_tags(shuffled))
    assert np.array_equal(written(file, files), labels.transpose(2, 1, 0) if z_last else labels)
    segmentation = highdicom.seg.segread(file)
    segments = [segmentation.get_segment_description(number) for number in (1, 2, 3)]
    labels_of_segments = [segment.segment_label for segment in segments]
    assert labels_of_segments == ["Leber 肝", "tumor/core", "absent"]
    assert {segment.algorithm_type.value for segment in segments} == {"AUTOMATIC"}
    assert segmentation.SegmentationType == "BINARY"
    source = pydicom.dcmread(files[0])
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientBirthDate"):
        assert segmentation[name].value == source[name].value, name
    assert segmentation.SeriesInstanceUID != source.SeriesInstanceUID


def test_a_mask_without_foreground(tmp_path, files):
    image = read_image(files[0], slices=files)
    labels = np.zeros(SHAPE, np.uint8)
    write_segmentation(tmp_path / "case.dcm", labels, NAMES, image, read_tags(files))
    assert not written(tmp_path / "case.dcm", files).any()


@pytest.mark.parametrize(
    "tags",
    [{}, {"SOPClassUID": DigitalXRayImageStorageForPresentation, "FrameOfReferenceUID": None}],
    ids=["slice", "radiograph"],
)
def test_a_2d_image(tmp_path, files, rng, tags):
    edit(files, **tags)
    image = read_image(files[0])
    labels = rng.integers(0, 3, SHAPE[1:]).astype(np.uint8)
    write_segmentation(tmp_path / "case.dcm", labels, NAMES, image, read_tags(files[:1]))
    assert np.array_equal(written(tmp_path / "case.dcm", files[:1]), labels[None])


@pytest.mark.slow
def test_many_classes(tmp_path, files, rng):
    """More than 8 bits hold, and names that are longer than a label may be."""
    image = read_image(files[0], slices=files)
    names = ("background", *(f"class {number} {'x' * 80}" for number in range(1, 301)))
    labels = rng.integers(0, 301, SHAPE).astype(np.int16)
    write_segmentation(tmp_path / "case.dcm", labels, names, image, read_tags(files))
    assert np.array_equal(written(tmp_path / "case.dcm", files), labels)
    segment = highdicom.seg.segread(tmp_path / "case.dcm").get_segment_description(300)
    assert segment.segment_label == f"class 300 {'x' * 53}…"


@pytest.mark.parametrize("per_frame", [False, True])
def test_frames_of_an_enhanced_image_in_any_order(tmp_path, rng, per_frame):
    """Their geometry is stated once, or in every frame."""
    order = (3, 0, 4, 1, 2)
    voxels = rng.integers(0, 99, SHAPE)
    source = write_enhanced(tmp_path / "enhanced.dcm", voxels, order=order)
    if per_frame:
        dataset = pydicom.dcmread(source)
        (shared,) = dataset.SharedFunctionalGroupsSequence
        for group in dataset.PerFrameFunctionalGroupsSequence:
            group.update(shared)
        dataset.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
        dataset.save_as(source)
    image = read_image(source)
    assert np.array_equal(image.array[0], voxels)
    labels = rng.integers(0, 3, SHAPE).astype(np.uint8)
    file = tmp_path / "case.dcm"
    write_segmentation(file, labels, NAMES, image, read_tags([source]))
    frames = highdicom.seg.segread(file).get_pixels_by_source_frame(
        str(pydicom.dcmread(source).SOPInstanceUID),
        range(1, 6),
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    assert np.array_equal(frames, labels[list(order)])


def test_unusual_tags_of_patients(tmp_path, files, caplog, recwarn):
    """They are copied or left empty, and never printed."""
    image = read_image(files[0], slices=files)
    edit(files, SpecificCharacterSet="ISO_IR 100", PatientName="Müller", PatientSex="W")
    edit(files, PatientBirthDate="in May", StudyDate="20260101", StudyTime="", PatientID=None)
    labels = np.ones(SHAPE, np.uint8)
    write_segmentation(tmp_path / "case.dcm", labels, NAMES, image, read_tags(files))
    segmentation = pydicom.dcmread(tmp_path / "case.dcm")
    assert (segmentation.PatientName, segmentation.PatientSex) == ("Müller", "")
    assert (segmentation.PatientBirthDate, segmentation.StudyDate) == ("", "20260101")
    assert (segmentation.PatientID, segmentation.StudyTime) == ("", "")
    assert [*recwarn, *caplog.records] == []


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"StudyInstanceUID": None}, "has no StudyInstanceUID, so that no DICOM Segmentation"),
        ({"ImagePositionPatient": [0, 0, 0]}, r"not suitable for a DICOM Segmentation"),
        ({"SOPClassUID": "1.2.3"}, r"not suitable for a DICOM Segmentation \(KeyError\)"),
    ],
)
def test_series_that_no_segmentation_can_refer_to(tmp_path, files, tags, message):
    image = read_image(files[0], slices=files)
    edit(files, **tags)
    labels = np.ones(SHAPE, np.uint8)
    with pytest.raises(CrkdError, match=f"{message}.*; drop --dicom-seg"):
        write_segmentation(tmp_path / "case.dcm", labels, NAMES, image, read_tags(files))
    assert not list(tmp_path.glob("*.dcm"))


def test_a_damaged_file(files):
    files[1].write_bytes(files[1].read_bytes()[:400])
    with pytest.raises(CrkdError, match=f"{files[1]} (is a damaged DICOM file|has no )"):
        read_tags(files)
    files[1].unlink()
    with pytest.raises(CrkdError, match=f"{files[1]} is a damaged DICOM file; copy it again"):
        read_tags(files)


def test_more_classes_than_segments():
    check_segmentations(2**16)
    with pytest.raises(UsageError, match="can contain 65535 classes, but the model has 65536"):
        check_segmentations(2**16 + 1)
