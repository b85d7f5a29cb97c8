"""Read and write image files of any supported format, chosen by suffix.

Formats: PNG, JPG, TIFF, BMP and GIF (`pictures`), HDF5 (`hdf5`), NIfTI, NRRD and MetaImage
(`medical`), and DICOM (`dicom`), whose files may have any name.

Arrays are [C, *S] for images and [*S] for label maps. *S is [y, x] or [z, y, x]; with `z_last`,
medical volumes are returned as [x, y, z]. HDF5 arrays are always returned as stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw import content, dicom, hdf5, medical, pictures
from crkd_cli.data.raw.colors import color_picture_error, to_values
from crkd_cli.data.raw.geometry import Geometry
from crkd_cli.data.raw.isolation import IsolatedProcessError
from crkd_cli.data.raw.label_entries import LabelEntry
from crkd_cli.data.raw.limits import check_regular, enough_memory
from crkd_cli.errors import CrkdError
from crkd_cli.paths import atomic_write

SUFFIXES = (*pictures.SUFFIXES, *medical.SUFFIXES, *hdf5.SUFFIXES, *dicom.SUFFIXES)
DATA_SUFFIXES = (".img", ".raw", ".zraw")  # of the files that belong to a header
MAX_CHANNEL_SPREAD = 32  # JPEG compression separates equal channels by no more than this
# Masks are lossless single files, so those of images with these suffixes have another one.
MASK_SUFFIXES = {
    ".jpg": ".png",
    ".jpeg": ".png",
    ".bmp": ".png",
    ".gif": ".png",
    ".hdr": ".nii",
    ".nhdr": ".nrrd",
    ".mhd": ".mha",
    ".dcm": ".nii.gz",
    ".ima": ".nii.gz",
}


@dataclass(frozen=True)
class Volume:
    """An image, and what `write_label` needs to write a mask with the same geometry."""

    array: NDArray[Any]  # [C, *S]
    spacing_mm: tuple[float, ...] | None  # per axis of *S; None if the file does not state it
    size: tuple[int, ...]  # *S of the file, in the axis order of `array`
    geometry: Geometry | None = None  # of medical files
    z_last: bool = False  # `array` is [x, y, z] while the file is [z, y, x]
    dpi: tuple[float, float] | None = None  # x, y; of pictures that state it
    is_resampled: bool = False  # a channel, to the grid of the first one


@dataclass(frozen=True)
class LabelMap:
    """The integer values of a label file as stored, before they are mapped to class numbers."""

    array: NDArray[Any]  # [*S]
    geometry: Geometry | None  # of medical files


class Layout(NamedTuple):
    """What the header of an image file states."""

    channels: int
    size: tuple[int, ...]  # *S, in the order of the file's array: z first
    geometry: Geometry | None = None  # of medical files
    has_label: bool = False  # the file also contains a label map (HDF5 only)
    modality: str = ""  # such as CT or MR (DICOM only)
    is_color: bool = False  # the channels are red, green and blue

    @property
    def dims(self) -> int:
        """The number of spatial axes."""
        return len(self.size)


def read_image(
    path: Path,
    z_last: bool = False,
    channels: Sequence[str] = (),
    slices: Sequence[Path] = (),
    resized_to: tuple[int, ...] | None = None,
) -> Volume:
    """Read an image with the values of the file, or of the `slices` of a DICOM series.

    `channels` are the names of all channels of the dataset. The fourth axis of a NIfTI file, or the
    first one of an h5 array, is that of channels if it has as many, and an h5 file may have an
    array for each.

    `resized_to` is the size (y, x) that the image will be resized to, if any: the array of a JPEG
    is then smaller than its `size`, where this is faster.

    Raises CrkdError if the file is missing, empty, truncated or of an unknown format.
    """
    with _readable(path) as kind:
        if kind in pictures.SUFFIXES:
            picture = pictures.read(path, resized_to=resized_to)
            return Volume(picture.array, None, picture.size, dpi=picture.dpi)
        if kind in hdf5.SUFFIXES:
            array = hdf5.read_image(path, channels)
            return Volume(array, None, array.shape[1:])
        if kind in dicom.SUFFIXES:
            array, geometry = dicom.read(path, slices)
        else:
            array, geometry = medical.read(path, kind, len(channels))

    turned = z_last and array.ndim == 4
    if turned:
        array = array.transpose(0, 3, 2, 1)
    spacing = geometry.spacing
    if spacing is not None and not turned:
        spacing = spacing[::-1]
    return Volume(array, spacing, array.shape[1:], geometry, turned)


def read_label(
    path: Path, z_last: bool = False, colors: Mapping[int, int] | None = None
) -> LabelMap:
    """Read a label map with the integer values of the file, or with those of its `colors`.

    Raises CrkdError like `read_image`, and if the file contains fractions or other colors.
    """
    geometry = None
    with _readable(path) as kind:
        if kind in pictures.SUFFIXES:
            array = pictures.read(path, as_label=not colors).array
        elif kind in hdf5.SUFFIXES:
            array = hdf5.read_label(path)
        elif kind in dicom.SUFFIXES:
            raise CrkdError(f"{path} is DICOM; convert the label to NIfTI")
        else:
            array, geometry = medical.read(path, kind)
            if z_last and array.ndim == 4:
                array = array.transpose(0, 3, 2, 1)
    if colors:
        return LabelMap(to_values(array, colors, path), geometry)
    return LabelMap(_as_integers(_single_channel(array, path), path), geometry)


def write_label(
    path: Path, label: NDArray[Any], like: Volume, labels: Sequence[LabelEntry] = ()
) -> None:
    """Write the integers `label` [*S] with the geometry of the image `like`.

    The suffix of `path` determines the format (see `label_name`); the values are stored in the
    smallest type of the format that holds them all. NIfTI and NRRD files contain the names and
    colors of the values, `labels`. Raises CrkdError if there is no type, or if the file cannot be
    written.
    """
    if label.shape != like.size:
        raise CrkdError(
            f"cannot write {path}: the mask has shape {label.shape}, its image {like.size}"
        )
    kind = suffix(path)
    label = _smallest(label)
    with atomic_write(path) as temporary:
        if kind in pictures.SUFFIXES:
            try:
                pictures.write(temporary, label, kind, like.dpi)
            except CrkdError as error:
                raise CrkdError(f"cannot write {path}: {error}") from None
        elif kind in hdf5.SUFFIXES:
            hdf5.write(temporary, label)
        else:
            array = label.transpose(2, 1, 0) if like.z_last else label
            medical.write(temporary, array, kind, like.geometry, labels)


def probe(path: Path, channels: Sequence[str] = (), slices: Sequence[Path] = ()) -> Layout:
    """Read the layout of an image, or of the `slices` of a DICOM series, from the headers.

    `channels` are those of `read_image`. Raises CrkdError like it.
    """
    with _readable(path) as kind:
        if kind in pictures.SUFFIXES:
            count, size = pictures.layout(path)
            return Layout(count, size, is_color=count == 3)
        if kind in hdf5.SUFFIXES:
            count, size, has_label, is_color = hdf5.layout(path, channels)
            return Layout(count, size, has_label=has_label, is_color=is_color)
        if kind in dicom.SUFFIXES:
            count, size, geometry = dicom.layout(path, slices)
            modality = dicom.read_tags(path).modality
            return Layout(count, size, geometry, is_color=count == 3, modality=modality)
        count, size, geometry, is_color = medical.layout(path, kind, len(channels))
        return Layout(count, size, geometry, is_color=is_color)


def data_file(header: Path) -> Path | None:
    """Return the file beside `header` that contains its voxels, such as the .raw of an .mhd.

    Returns None if `header` contains them itself. Raises CrkdError if the file is missing, or if
    the header cannot be read.
    """
    with _readable(header) as kind:
        return medical.data_file(header, kind) if kind in medical.SUFFIXES else None


def label_name(path: Path) -> str:
    """Return the file name of the mask of image `path`: the same, unless a mask cannot have it."""
    kind = suffix(path)
    return f"{stem(path)}{MASK_SUFFIXES[kind]}" if kind in MASK_SUFFIXES else path.name


def suffix(path: Path) -> str:
    """Return the supported suffix of `path` (such as `.nii.gz`) in lower case, or ""."""
    name = path.name.lower()
    return next((kind for kind in SUFFIXES if name.endswith(kind)), "")


def stem(path: Path) -> str:
    """Return the name of `path` without its supported suffix."""
    return path.name[: len(path.name) - len(suffix(path))]


def _single_channel(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Reduce a label [C, *S] to [*S]. Raises CrkdError if the channels differ."""
    if len(array) == 3:
        spread = array.max(0).astype(int) - array.min(0)
        if spread.max() > MAX_CHANNEL_SPREAD:
            raise color_picture_error(array, path)
    elif len(array) != 1:
        raise CrkdError(f"{path} has {len(array)} channels; a label map has one")
    label: NDArray[Any] = array[0]
    return label


def _as_integers(array: NDArray[Any], path: Path) -> NDArray[Any]:
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind in "iu":
        return array
    if not (np.abs(array) < 2.0**63).all():  # NaN and infinity, too
        raise CrkdError(f"{path} contains values that are not class numbers (NaN or too large)")
    rounded = np.rint(array)
    if not np.array_equal(rounded, array):
        raise CrkdError(
            f"{path} contains fractions, not class numbers; save the label map with integers"
        )
    integers: NDArray[np.int64] = rounded.astype(np.int64)
    return integers


def _smallest(array: NDArray[Any]) -> NDArray[Any]:
    """Convert integers to the smallest type that holds them, unsigned if none is negative."""
    low, high = int(array.min()), int(array.max())
    names = ("i1", "i2", "i4", "i8") if low < 0 else ("u1", "u2", "u4", "u8")
    types = (np.dtype(name) for name in names)
    smallest = next(
        kind for kind in types if np.iinfo(kind).min <= low <= high <= np.iinfo(kind).max
    )
    return array.astype(smallest, copy=False)


@contextmanager
def _readable(path: Path) -> Iterator[str]:
    """Yield the suffix of `path`, and turn all exceptions of readers into a one-line CrkdError."""
    kind, is_recognized = checked_suffix(path)
    try:
        with enough_memory(path):
            yield kind
    except CrkdError:
        raise
    except IsolatedProcessError as error:
        raise CrkdError(
            f"{path} cannot be read, it may be damaged or malicious: {error}; copy it again"
        ) from None
    except Exception as error:  # damaged files fail in many ways
        reason = " ".join(str(error).split())[-160:] or type(error).__name__
        alternative = "damaged" if is_recognized else "in another format"
        raise CrkdError(
            f"{path} cannot be read, it may be truncated or {alternative} ({reason}); copy it again"
        ) from None


def checked_suffix(path: Path) -> tuple[str, bool]:
    """Return the suffix of `path`, and whether its content is recognized.

    Raises CrkdError if the content does not match the suffix.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            head = file.read(content.HEAD_BYTES)
    except OSError as error:
        raise CrkdError(f"{path} cannot be read: {error.strerror or error}") from None
    if not head:
        raise CrkdError(f"{path} is empty; copy or download it again")
    kind = suffix(path)
    actual = content.identify(head)
    if actual == content.DICOM and kind in ("", *dicom.SUFFIXES):
        return dicom.SUFFIXES[0], True
    if actual is None and kind in dicom.SUFFIXES:
        raise CrkdError(f"{path} is not a DICOM file (it lacks the mark DICM); remove it")
    if actual is not None and kind not in actual.suffixes:
        is_picture = kind in pictures.SUFFIXES and set(actual.suffixes) <= set(pictures.SUFFIXES)
        if not (is_picture and actual.suffixes):  # which are read by their content
            raise CrkdError(_unexpected(path, kind, actual))
    if path.suffix.lower() in DATA_SUFFIXES:
        raise CrkdError(f"{path} contains the voxels of another file; give its header")
    if not kind:
        raise CrkdError(f"{path} has no supported format; use one of {', '.join(SUFFIXES)}")
    return kind, actual is not None


def _unexpected(path: Path, kind: str, actual: content.Content) -> str:
    """Describe a file whose content does not match its suffix, and say what to do."""
    name = f" with a name that ends in {kind}" if kind else ""
    advice = actual.advice or f"end its name in {actual.suffixes[0]}"
    return f"{path} is {actual.name}{name}; {advice}"
