"""Write masks as DICOM Segmentations, which refer to the series they were predicted for.

A Segmentation belongs to the study of its series, so it contains the tags of the patient, the study
and the scanner. Nothing else that crkd writes does.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli import __version__
from crkd_cli.data.raw.dicom import hide_values
from crkd_cli.data.raw.formats import Volume
from crkd_cli.data.raw.geometry import LPS_TO_RAS
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.paths import atomic_write
from crkd_cli.text import printable, shorten

MAX_SEGMENTS = 2**16 - 1
MAX_LABEL = 64  # characters of a segment's name
IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
VOLUME_IDENTIFIERS = (*IDENTIFIERS, "FrameOfReferenceUID")
# These may be empty in a Segmentation, but not absent.
COPIED = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
SEXES = ("", "M", "F", "O")


def check_segmentations(class_count: int) -> None:
    """Raise UsageError if no Segmentation of `class_count` classes can be written."""
    if find_spec("highdicom") is None:
        raise UsageError('--dicom-seg needs highdicom; run: pip install "crkd[dicom]"')
    if class_count - 1 > MAX_SEGMENTS:
        raise UsageError(
            f"a DICOM Segmentation can contain {MAX_SEGMENTS} classes, but the model has "
            f"{class_count - 1}; drop --dicom-seg"
        )


def read_tags(series: Sequence[Path]) -> list[Any]:
    """Return the tags of the files of a series, without voxels, for `write_segmentation`.

    Invalid dates, times and sexes, as anonymization leaves them behind, become empty. Raises
    CrkdError if a file lacks a tag that a Segmentation needs, or if it is damaged.
    """
    for package in ("pydicom", "highdicom"):
        hide_values(package)
    images = []
    for file in series:
        try:
            image, missing = _read_file(file, len(series))
        except Exception:  # pydicom raises many; their messages contain values of tags
            raise CrkdError(f"{file} is a damaged DICOM file; copy it again") from None
        if missing:
            raise CrkdError(
                f"{file} has no {missing}, so that no DICOM Segmentation can refer to it; drop "
                "--dicom-seg"
            )
        images.append(image)
    return images


def write_segmentation(
    path: Path,
    labels: NDArray[Any],
    class_names: Sequence[str],
    volume: Volume,
    tags: Sequence[Any],
) -> None:
    """Write `labels` as a Segmentation with a binary segment for every foreground class.

    Raises CrkdError if the tags of the series are not suitable, or if the file cannot be written.

    Args:
        path: The file to write.
        labels: Class numbers [*S], axes as in the array of `volume`.
        class_names: Names of the classes, the background first.
        volume: The image.
        tags: Those of the files of the image, from `read_tags`.
    """
    planes = labels.transpose(2, 1, 0) if volume.z_last else labels
    planes = planes.reshape(-1, *planes.shape[-2:])  # a 2D image is one plane
    highdicom: Any = import_module("highdicom")
    try:
        planes = planes[_planes_of_frames(tags, volume, len(planes))]
        _complete_geometry(tags, volume)
        segmentation = highdicom.seg.Segmentation(
            source_images=tags,
            pixel_array=planes.astype(np.uint8 if len(class_names) <= 256 else np.uint16),
            segmentation_type="BINARY",
            segment_descriptions=_describe_segments(class_names),
            series_instance_uid=highdicom.UID(),
            sop_instance_uid=highdicom.UID(),
            series_number=1000 + int(tags[0].get("SeriesNumber") or 0),
            instance_number=1,
            manufacturer="crkd",
            manufacturer_model_name="crkd",
            software_versions=__version__,
            device_serial_number="none",  # may not be absent
            content_label="CRKD",
            content_description="Predicted by crkd",
            series_description="crkd segmentation",
            specific_character_set="ISO_IR 192",  # for names of classes in any language
        )
    except MemoryError:
        raise CrkdError(f"cannot write {path}: not enough memory; drop --dicom-seg") from None
    except Exception as error:  # unusual tags fail in many ways
        # The message may contain the values of tags.
        raise CrkdError(
            f"cannot write {path}: the tags of the series are not suitable for a DICOM "
            f"Segmentation ({type(error).__name__}); drop --dicom-seg"
        ) from None
    with atomic_write(path) as temporary:
        segmentation.save_as(temporary)


def _read_file(file: Path, count: int) -> tuple[Any, str]:
    """Return the tags of one of `count` files, and the name of one that is missing, or ""."""
    pydicom: Any = import_module("pydicom")
    image = pydicom.dcmread(file, stop_before_pixels=True)
    is_volume = count > 1 or "PerFrameFunctionalGroupsSequence" in image
    needed = VOLUME_IDENTIFIERS if is_volume else IDENTIFIERS
    for name in COPIED:
        if name not in image or not _is_valid(image[name]):
            setattr(image, name, None)
    return image, next((name for name in needed if not image.get(name)), "")


def _is_valid(element: Any) -> bool:
    """Return whether a tag can be copied; highdicom refuses invalid dates, times and sexes."""
    if element.keyword == "PatientSex":
        return element.value in SEXES
    if element.VR not in ("DA", "TM"):
        return True
    valuerep: Any = import_module("pydicom.valuerep")
    try:
        valuerep.validate_value(element.VR, element.value, import_module("pydicom.config").RAISE)
    except ValueError:
        return False
    return True


def _planes_of_frames(tags: Sequence[Any], volume: Volume, count: int) -> NDArray[np.intp]:
    """Return which of the `count` planes of `volume` every frame of the series is.

    Raises ValueError unless there is one frame per plane, at the same position.
    """
    frames = [frame for image in tags for frame in _frames(image)]
    if len(frames) == count == 1:
        return np.zeros(1, np.intp)
    if volume.geometry is None or len(frames) != count:
        raise ValueError("the frames are not the planes of the volume")
    positions = np.array([frame.ImagePositionPatient for frame in frames], np.float64)
    affine = volume.geometry.affines[0] * np.asarray(LPS_TO_RAS)[:, None]
    step, origin = affine[:, 2], affine[:, 3]
    expected = origin + np.arange(count)[:, None] * step
    distances = np.linalg.norm(positions[:, None] - expected, axis=-1)
    planes: NDArray[np.intp] = distances.argmin(1)
    is_same = np.array_equal(np.sort(planes), np.arange(count))
    if not is_same or distances.min(1).max() > np.linalg.norm(step) / 2:
        raise ValueError("the frames are not the planes of the volume")
    return planes


def _complete_geometry(tags: Sequence[Any], volume: Volume) -> None:
    """Let all `tags` state the geometry where highdicom expects it, although they need not.

    That is the same orientation in every file, or in the groups that all frames share, and a
    thickness.
    """
    spacing = () if volume.geometry is None else volume.geometry.spacing or ()
    thickness = spacing[2] if len(spacing) == 3 else 1.0  # unknown, but it may not be absent
    for image in tags:
        measures = image
        if "PerFrameFunctionalGroupsSequence" in image:
            shared = image.SharedFunctionalGroupsSequence[0]
            for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
                if name not in shared:
                    setattr(shared, name, image.PerFrameFunctionalGroupsSequence[0][name].value)
            measures = shared.PixelMeasuresSequence[0]
        elif len(tags) > 1:
            image.ImageOrientationPatient = tags[0].ImageOrientationPatient
        if not measures.get("SliceThickness"):
            measures.SliceThickness = thickness


def _frames(image: Any) -> list[Any]:
    """Return the datasets that state the positions of the frames of an image."""
    groups = image.get("PerFrameFunctionalGroupsSequence")
    return [image] if groups is None else [group.PlanePositionSequence[0] for group in groups]


def _describe_segments(class_names: Sequence[str]) -> list[Any]:
    """Return the descriptions of the segments: one per class, except the background.

    Only the name tells classes apart. The code of all is Tissue, which is true for organs and
    lesions alike, and what viewers use for segments without a code of their own.
    """
    highdicom: Any = import_module("highdicom")
    codes: Any = import_module("pydicom.sr.codedict").codes
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="crkd", version=__version__, family=codes.DCM.ArtificialIntelligence
    )
    segments = []
    for number, name in enumerate(class_names[1:], start=1):
        segment = highdicom.seg.SegmentDescription(
            segment_number=number,
            # A backslash would separate two values.
            segment_label=shorten(printable(name).replace("\\", "/"), MAX_LABEL),
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        segments.append(segment)
    return segments
