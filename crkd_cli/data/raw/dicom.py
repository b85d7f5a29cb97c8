"""Read DICOM: the tags of files with pydicom, the voxels of a file or a series with GDCM.

Compressed voxels are decoded by native code, so they are read in a separate process. pydicom is an
optional dependency. No message contains the value of a tag, which could name a patient.
"""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw import content
from crkd_cli.data.raw.deflated import check_deflated
from crkd_cli.data.raw.geometry import Geometry
from crkd_cli.data.raw.isolation import call_isolated
from crkd_cli.data.raw.limits import check_declared_size, enough_memory
from crkd_cli.data.raw.slices import Frame, Stack, arrange
from crkd_cli.data.raw.tag_values import check_values, integer, numbers, text
from crkd_cli.errors import CrkdError

SUFFIXES = (".dcm", ".ima")
NEEDS_PYDICOM = 'is DICOM, which needs pydicom; run: pip install "crkd[dicom]"'
DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR
# Objects that are not images, although some of them contain pixels.
OTHER_MODALITIES = ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "SR", "PR", "KO", "REG")
UNKNOWN_KIND = "an unknown kind of object"
COLORS = ("RGB", "YBR", "PALETTE")
INVERTED = "MONOCHROME1"  # low values are white; GDCM inverts them, as viewers do
MEASURED = ("CT", "MR", "PT")  # modalities whose values mean something, unlike those of an X-ray
# The memory of the process that decodes; damaged files make GDCM reserve gigabytes.
COPIES = 8  # of the voxels, of which some are 64-bit floats
OVERHEAD_BYTES = 1 << 30  # of the libraries, mostly reserved but not used
INT16 = np.iinfo(np.int16)
UNCOMPRESSED = ("Implicit VR Little Endian", "Explicit VR Little Endian")
ELEMENT_BYTES = 8  # before the pixels, or 12
TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "Modality",
    "PatientID",
    "PatientName",
    "ImageType",
    "EchoTime",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "BitsAllocated",
    "RescaleSlope",
    "RescaleIntercept",
    "PixelSpacing",
    "SpacingBetweenSlices",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


@dataclass(frozen=True, slots=True)
class Tags:
    """What the tags of a DICOM file say."""

    kind: str  # the name of its SOP class, such as CT Image Storage
    sop_class: str
    instance: str  # a UID, as are study and series
    study: str
    series: str
    description: str  # of the series
    modality: str
    patient: str  # its ID; private, as is its name
    patient_name: str
    syntax: str  # the name of its transfer syntax
    image_type: str
    parts: tuple[str, ...]  # echo time, acquisition, time point and image type
    size: tuple[int, int]  # columns, rows; zeros: it has no pixels
    color: str  # its photometric interpretation
    sample_bytes: int  # 0: less than one
    stored_bytes: int  # the pixels, compressed or not, and what follows
    frames: tuple[Frame, ...]
    rescalings: int  # the number of different ones among its frames

    @property
    def is_image(self) -> bool:
        """Whether it is an image, which a segmentation, a dose or a report is not."""
        has_kind = "Image Storage" in self.kind or self.kind == UNKNOWN_KIND
        return has_kind and min(self.size) > 0 and self.modality not in OTHER_MODALITIES

    @property
    def is_localizer(self) -> bool:
        """Whether it is a scout view, from which the positions of slices are chosen."""
        return "LOCALIZER" in self.image_type

    @property
    def is_color(self) -> bool:
        """Whether its pixels are colors."""
        return self.color.startswith(COLORS)


def is_dicom(path: Path) -> bool:
    """Tell whether the content of a file is DICOM, whatever its name."""
    try:
        with path.open("rb") as file:
            return content.identify(file.read(content.HEAD_BYTES)) == content.DICOM
    except OSError:
        return False


def is_available() -> bool:
    """Tell whether pydicom is installed."""
    return find_spec("pydicom") is not None


def read_tags(path: Path) -> Tags:
    """Return what the tags of a file say. They are read once, unless the file changes.

    Raises CrkdError if it is damaged, or if pydicom is missing.
    """
    if not is_available():
        raise CrkdError(f"{path} {NEEDS_PYDICOM}")
    try:
        status = path.stat()
        with enough_memory(path):
            return _read_tags(os.fspath(path), status.st_mtime_ns, status.st_size)
    except CrkdError:
        raise
    except Exception as error:  # pydicom raises many; their messages contain values of tags
        if isinstance(error, OSError) and error.errno is not None:
            raise CrkdError(f"{path} cannot be read: {error.strerror}") from None
        raise CrkdError(f"{path} is a damaged DICOM file; copy it again") from None


def hide_values(package: str) -> None:
    """Silence the warnings of `package`, pydicom or highdicom, which contain values of tags.

    The filter stays, because catch_warnings would restore all filters while another thread may
    depend on its own.
    """
    logging.getLogger(package).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=package)


def read(path: Path, slices: Sequence[Path] = ()) -> tuple[NDArray[Any], Geometry]:
    """Read an image from a file, or from all `slices` of a series, as [C, *S].

    Slices and frames are sorted by their positions. Values are rescaled as the tags say, for
    example to Hounsfield units. Raises CrkdError if the slices do not form a volume.
    """
    files = list(slices) or [path]
    tags, stack = _arranged(path, files)
    count, first = len(stack.order), tags[0]
    stored = sum(file.stat().st_size for file in files)
    samples = 3 if first.is_color else 1
    declared = count * first.size[0] * first.size[1] * samples * first.sample_bytes
    check_declared_size(path, declared, compressed=True, stored=stored)
    if first.syntax in UNCOMPRESSED and not first.is_color:  # GDCM invents missing frames
        pixels = sum(tag.stored_bytes for tag in tags)
        check_declared_size(path, declared, compressed=False, stored=pixels)
    names = [str(file) for file in files]
    array: NDArray[Any]
    memory = COPIES * (declared + stored) + OVERHEAD_BYTES
    (array,) = call_isolated(
        load, path, names, list(first.size), first.syntax, size=stored, memory=memory
    )
    if len(array) != count:
        raise CrkdError(f"{path} has another number of frames than its tags say; copy it again")
    if first.is_color:
        return np.moveaxis(array[0], -1, 0), _geometry(stack)
    if count == 1:
        return array, _geometry(stack)
    if stack.order != tuple(range(count)):
        array = array[list(stack.order)]
    return array[None], _geometry(stack)


def layout(path: Path, slices: Sequence[Path] = ()) -> tuple[int, tuple[int, ...], Geometry]:
    """Return channels, *S and the geometry from the tags of a file, or of all `slices`."""
    tags, stack = _arranged(path, list(slices) or [path])
    columns, rows = tags[0].size
    count = len(stack.order)
    size = (rows, columns) if count == 1 else (count, rows, columns)
    return 3 if tags[0].is_color else 1, size, _geometry(stack)


def load(path: Path, files: Sequence[str], size: Sequence[int], syntax: str) -> tuple[NDArray[Any]]:
    """Return the pixels [N, y, x] of all files, or [1, y, x, 3] of one with colors."""
    sitk: Any = import_module("SimpleITK")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    parts = []
    for file in files:
        reader.SetFileName(file)
        try:
            image = reader.Execute()
        except RuntimeError:
            raise CrkdError(
                f"{file} cannot be decoded ({syntax}): it may be truncated, then copy it again; "
                "else decompress it, for example with gdcmconv --raw"
            ) from None
        if image.GetSize()[:2] != tuple(size):
            raise CrkdError(f"{file} has another size than its tags say; copy it again")
        parts.append(_compact(sitk.GetArrayFromImage(image)))
    return (parts[0] if len(parts) == 1 else np.concatenate(parts),)


def _arranged(path: Path, files: Sequence[Path]) -> tuple[list[Tags], Stack]:
    """Return the tags of the files of an image, and how they form it.

    Raises CrkdError if they do not.
    """
    tags = [read_tags(file) for file in files]
    _check_image(path, tags)
    stack = arrange([frame for tag in tags for frame in tag.frames], are_ordered=len(tags) == 1)
    if stack.problem:
        raise CrkdError(f"{path.parent if len(files) > 1 else path} {stack.problem}")
    return tags, stack


def _geometry(stack: Stack) -> Geometry:
    return Geometry(stack.spacing, () if stack.affine is None else (stack.affine,))


def _check_image(path: Path, tags: Sequence[Tags]) -> None:
    """Raise CrkdError unless files with these `tags` are an image that can be read."""
    first = tags[0]
    if not first.is_image:
        raise CrkdError(f"{path} is not an image ({first.kind})")
    if any(tag.size != first.size or tag.color != first.color for tag in tags):
        raise CrkdError(f"{path.parent} has a series with images of several sizes or colors")
    if first.is_color and first.sample_bytes > 1:
        raise CrkdError(f"{path} has colors of {8 * first.sample_bytes} bits; save it with 8 bits")
    if first.is_color and sum(len(tag.frames) for tag in tags) > 1:
        raise CrkdError(f"{path} is a film or series in color; a volume needs gray slices")
    if first.color == INVERTED and first.modality in MEASURED:
        raise CrkdError(
            f"{path} has inverted gray values ({INVERTED}); convert it to MONOCHROME2 or NIfTI"
        )
    if any(tag.rescalings > 1 for tag in tags):
        raise CrkdError(
            f"{path} rescales every frame differently; convert it to single frames or NIfTI"
        )


def _compact(array: NDArray[Any]) -> NDArray[Any]:
    """Return 32-bit integers as 16-bit ones if they fit."""
    if array.dtype == np.int32 and INT16.min <= array.min() and array.max() <= INT16.max:
        return array.astype(np.int16)
    return array


@lru_cache(maxsize=1 << 18)
def _read_tags(path: str, _modified: int, size_of_file: int) -> Tags:
    """Return the tags of a file; the time notices that it was replaced."""
    import pydicom

    hide_values("pydicom")
    check_deflated(Path(path), size_of_file)
    with Path(path).open("rb") as file:
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS)
        stored_bytes = size_of_file - file.tell() - ELEMENT_BYTES
    sop_class = text(dataset, "SOPClassUID") or text(dataset.file_meta, "MediaStorageSOPClassUID")
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    parts = ("EchoTime", "AcquisitionNumber", "TemporalPositionIdentifier", "ImageType")
    size = (integer(dataset, "Columns"), integer(dataset, "Rows"))
    kind = _uid_name(sop_class) or UNKNOWN_KIND
    if min(size) < 1 and ("Image Storage" in kind or not sop_class):
        raise EOFError("it has no pixels")
    check_values(dataset)
    return Tags(
        kind=kind,
        sop_class=sop_class,
        instance=str(dataset.get("SOPInstanceUID") or ""),
        study=text(dataset, "StudyInstanceUID"),
        series=text(dataset, "SeriesInstanceUID"),
        description=" ".join(text(dataset, "SeriesDescription").split()),
        modality=text(dataset, "Modality"),
        patient=text(dataset, "PatientID").strip(),
        patient_name=text(dataset, "PatientName"),
        syntax=_uid_name(str(syntax)) or "an unknown transfer syntax",
        image_type=text(dataset, "ImageType"),
        parts=tuple(text(dataset, part) for part in parts),
        size=size,
        color=text(dataset, "PhotometricInterpretation"),
        sample_bytes=integer(dataset, "BitsAllocated") // 8,
        stored_bytes=stored_bytes,
        frames=_frames(dataset),
        rescalings=_rescaling_count(dataset),
    )


def _frames(dataset: Any) -> tuple[Frame, ...]:
    """Return where the frames of a file lie; a file without frames has one."""
    per_frame = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if not per_frame:
        frame, count = _frame([dataset]), integer(dataset, "NumberOfFrames")
        # The position of a film is that of its first frame.
        return (frame,) if count < 2 else (frame._replace(position=None),) * count
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
    return tuple(_frame([*_groups([group, *shared]), dataset]) for group in per_frame)


def _groups(items: Sequence[Any]) -> list[Any]:
    """Return the functional groups that say where a frame lies; the first ones count."""
    names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    groups = []
    for item in items:
        for name in names:
            groups += list(item.get(name) or ())[:1]
    return groups


def _frame(sources: Sequence[Any]) -> Frame:
    """Return where a frame lies, from the first of `sources` that says it."""

    def stated(keyword: str, count: int) -> tuple[float, ...] | None:
        found = (numbers(source, keyword, count) for source in sources)
        return next((values for values in found if values is not None), None)

    distance = stated("SpacingBetweenSlices", 1)
    return Frame(
        position=stated("ImagePositionPatient", 3),
        orientation=_shared(stated("ImageOrientationPatient", 6)),
        spacing=_shared(stated("PixelSpacing", 2)),
        distance=None if distance is None else abs(distance[0]),
    )


@lru_cache(maxsize=1 << 10)
def _shared(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Return the same object for equal values, because thousands of slices have the same."""
    return values


def _rescaling_count(dataset: Any) -> int:
    """Return how many different slopes and intercepts the frames of a file have."""
    rescalings = set()
    for group in dataset.get("PerFrameFunctionalGroupsSequence") or ():
        for item in group.get("PixelValueTransformationSequence") or ():
            slope, intercept = (text(item, f"Rescale{name}") for name in ("Slope", "Intercept"))
            rescalings.add((slope, intercept))
    return len(rescalings)


def _uid_name(text: str) -> str:
    """Return the name of a UID of the standard, "" for others: it may be damaged."""
    import pydicom

    name = pydicom.uid.UID(text).name
    return "" if name == text else sys.intern(name)
