"""DICOM Segmentations, read back with highdicom."""

import warnings
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from crkd_cli.data.raw.formats import Volume
from crkd_cli.data.raw.geometry import Geometry, affine_from
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.inference.dicom_seg import check_segmentations, read_tags, write_segmentation

SHAPE = (5, 7, 9)  # z, y, x
SPACING = (0.7, 1.3, 4.5)  # x, y, z
ORIGIN = (-12.5, 33.0, 101.25)
STRAIGHT = np.eye(3)
OBLIQUE = np.array([[0.8, 0.6, 0], [0.6, -0.8, 0], [0, 0, -1]])
NAMES = ("background", "Leber 肝", "tumor", "absent")


def volume(direction=STRAIGHT, z_last=False) -> Volume:
    array = np.zeros((1, *SHAPE[:: -1 if z_last else 1]))
    geometry = Geometry(SPACING, (affine_from(SPACING, ORIGIN, direction),))
    return Volume(array, SPACING[::-1], array.shape[1:], geometry, z_last)


def write_series(folder: Path, direction=STRAIGHT) -> list[Path]:
    """Write SHAPE as one file per plane, and return them in order."""
    folder.mkdir()
    uids = {name: generate_uid() for name in ("Study", "Series", "FrameOfReference")}
    files = []
    for plane in range(SHAPE[0]):
        image = Dataset()
        for name, uid in uids.items():
            setattr(image, f"{name}UID" if name.startswith("Frame") else f"{name}InstanceUID", uid)
        image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", generate_uid()
        image.Modality, image.PatientName, image.PatientID = "MR", "Doe^Jane", "id 12"
        image.SeriesNumber, image.InstanceNumber = 7, plane + 1
        image.PixelSpacing, image.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        image.ImageOrientationPatient = direction.T[:2].ravel().tolist()
        position = np.array(ORIGIN) + direction[:, 2] * SPACING[2] * plane
        image.ImagePositionPatient = position.round(4).tolist()
        image.Rows, image.Columns = SHAPE[1:]
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        files.append(folder / f"{plane}")
        image.save_as(files[-1], enforce_file_format=True)
    return files


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


@pytest.mark.parametrize("direction", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("z_last", [False, True])
def test_voxels_names_and_references(tmp_path, rng, direction, z_last):
    files = write_series(tmp_path / "series", direction)
    image = volume(direction, z_last)
    labels = rng.integers(0, 3, image.size).astype(np.uint8)
    shuffled = [files[plane] for plane in (3, 0, 4, 1, 2)]
    file = tmp_path / "case.dcm"
    write_segmentation(file, labels, NAMES, image, read_tags(shuffled))
    assert np.array_equal(written(file, files), labels.transpose(2, 1, 0) if z_last else labels)
    segmentation = highdicom.seg.segread(file)
    segments = [segmentation.get_segment_description(number) for number in (1, 2, 3)]
    assert [segment.segment_label for segment in segments] == list(NAMES[1:])
    assert {segment.algorithm_type.value for segment in segments} == {"AUTOMATIC"}
    assert segmentation.SegmentationType == "BINARY"
    source = pydicom.dcmread(files[0])
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientID"):
        assert segmentation[name].value == source[name].value, name
    assert segmentation.SeriesInstanceUID != source.SeriesInstanceUID
    affine = image.geometry.affines[0] * np.array([-1, -1, 1])[:, None]  # in LPS
    labeled = segmentation.get_volume(combine_segments=True)  # of the planes with a segment
    columns = labeled.affine[:3, [2, 1, 0, 3]]
    np.testing.assert_allclose(columns[:, :2], affine[:, :2], atol=1e-5)


def test_a_mask_without_foreground(tmp_path):
    files = write_series(tmp_path / "series")
    image = volume()
    write_segmentation(
        tmp_path / "case.dcm", np.zeros(SHAPE, np.uint8), NAMES, image, read_tags(files)
    )
    assert not written(tmp_path / "case.dcm", files).any()


@pytest.mark.slow
def test_many_classes(tmp_path, rng):
    """More than 8 bits hold, and names that are longer than a label may be."""
    files = write_series(tmp_path / "series")
    names = ("background", *(f"class {number} {'x' * 80}" for number in range(1, 301)))
    labels = rng.integers(0, 301, SHAPE).astype(np.int16)
    write_segmentation(tmp_path / "case.dcm", labels, names, volume(), read_tags(files))
    assert np.array_equal(written(tmp_path / "case.dcm", files), labels)
    segment = highdicom.seg.segread(tmp_path / "case.dcm").get_segment_description(300)
    assert segment.segment_label == f"class 300 {'x' * 53}…"


def test_frames_of_an_enhanced_image_in_any_order(tmp_path, rng):
    files = write_series(tmp_path / "series")
    image = pydicom.dcmread(files[0])
    image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = image.PixelSpacing, image.SliceThickness
    orientation.ImageOrientationPatient = image.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    image.SharedFunctionalGroupsSequence = [shared]
    order = [3, 0, 4, 1, 2]
    groups = []
    for plane in order:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = pydicom.dcmread(files[plane]).ImagePositionPatient
        group.PlanePositionSequence = [position]
        groups.append(group)
    image.PerFrameFunctionalGroupsSequence = groups
    image.NumberOfFrames = len(groups)
    image.save_as(tmp_path / "multiframe")
    labels = rng.integers(0, 3, SHAPE).astype(np.uint8)
    file = tmp_path / "case.dcm"
    write_segmentation(file, labels, NAMES, volume(), read_tags([tmp_path / "multiframe"]))
    frames = highdicom.seg.segread(file).get_pixels_by_source_frame(
        str(image.SOPInstanceUID),
        range(1, 6),
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    assert np.array_equal(frames, labels[order])


def test_unusual_tags_of_patients(tmp_path, caplog, recwarn):
    """They are copied or left empty, and never printed."""
    files = write_series(tmp_path / "series")
    edit(files, SpecificCharacterSet="ISO_IR 100", PatientName="Müller", PatientSex="W")
    edit(files, PatientBirthDate="in May", StudyDate="20260101", StudyTime="", PatientID=None)
    labels = np.ones(SHAPE, np.uint8)
    write_segmentation(tmp_path / "case.dcm", labels, NAMES, volume(), read_tags(files))
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
def test_series_that_no_segmentation_can_refer_to(tmp_path, tags, message):
    files = write_series(tmp_path / "series")
    edit(files, **tags)
    with pytest.raises(CrkdError, match=f"{message}.*; drop --dicom-seg"):
        write_segmentation(
            tmp_path / "case.dcm", np.ones(SHAPE, np.uint8), NAMES, volume(), read_tags(files)
        )
    assert not list(tmp_path.glob("*.dcm"))


def test_more_classes_than_segments():
    check_segmentations(2**16)
    with pytest.raises(UsageError, match="can contain 65535 classes, but the model has 65536"):
        check_segmentations(2**16 + 1)
