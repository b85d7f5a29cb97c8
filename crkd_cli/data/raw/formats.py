"""Read and write image files of any supported format, chosen by suffix.

Formats: PNG, JPG, TIFF (`pictures`), HDF5 (`hdf5`), NIfTI, NRRD and MHA (`medical`).

Arrays are [C, *S] for images and [*S] for label maps. *S is [y, x] or [z, y, x]; with `z_last`,
medical volumes are returned as [x, y, z]. HDF5 arrays are always returned as stored.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw import hdf5, medical, pictures
from crkd_cli.data.raw.medical import Geometry
from crkd_cli.errors import CrkdError
from crkd_cli.paths import atomic_write

SUFFIXES = (*pictures.SUFFIXES, *medical.SUFFIXES, *hdf5.SUFFIXES)
MAX_CHANNEL_SPREAD = 32  # JPEG compression separates equal channels by no more than this


@dataclass(frozen=True)
class Volume:
    """An image, and what `write_label` needs to write a mask that lies on it."""

    array: NDArray[Any]  # [C, *S]
    spacing_mm: tuple[float, ...] | None  # per axis of *S; None if the file does not state it
    size: tuple[int, ...]  # *S of the file, in the axis order of `array`
    geometry: Geometry | None = None  # of medical files
    z_last: bool = False  # `array` is [x, y, z] while the file is [z, y, x]


@dataclass(frozen=True)
class LabelMap:
    """The integer values of a label file as stored, before they are mapped to class numbers."""

    array: NDArray[Any]  # [*S]
    geometry: Geometry | None  # of medical files


class Layout(NamedTuple):
    """What the header of an image file states."""

    channels: int
    dims: int  # spatial axes
    has_label: bool = False  # the file also contains a label map (HDF5 only)


def read_image(path: Path, z_last: bool = False) -> Volume:
    """Read an image with the values of the file.

    Raises CrkdError if the file is missing, empty, truncated or of an unknown format.
    """
    with _readable(path) as kind:
        if kind in pictures.SUFFIXES:
            array = pictures.read(path)
            return Volume(array, None, array.shape[1:])
        if kind in hdf5.SUFFIXES:
            array = hdf5.read(path, "image")
            return Volume(array, None, array.shape[1:])
        array, geometry = medical.read(path)

    spacing = geometry.spacing[::-1]
    turned = z_last and array.ndim == 4
    if turned:
        array = array.transpose(0, 3, 2, 1)
        spacing = spacing[::-1]
    return Volume(array, spacing, array.shape[1:], geometry, turned)


def read_label(path: Path, z_last: bool = False) -> LabelMap:
    """Read a label map with the integer values of the file.

    Raises CrkdError like `read_image`, and if the file is a color picture or contains fractions.
    """
    geometry = None
    with _readable(path) as kind:
        if kind in pictures.SUFFIXES:
            array = pictures.read(path, as_label=True)
        elif kind in hdf5.SUFFIXES:
            array = hdf5.read(path, "label")
        else:
            array, geometry = medical.read(path)
            if z_last and array.ndim == 4:
                array = array.transpose(0, 3, 2, 1)
    return LabelMap(_as_integers(_single_channel(array, path), path), geometry)


def write_label(path: Path, label: NDArray[np.uint8], like: Volume) -> None:
    """Write the class numbers `label` [*S] with the geometry of the image `like`.

    The suffix of `path` determines the format (see `label_name`). Raises CrkdError if the file
    cannot be written.
    """
    if label.shape != like.size:
        raise CrkdError(
            f"cannot write {path}: the mask has shape {label.shape}, its image {like.size}"
        )
    kind = suffix(path)
    with atomic_write(path) as temporary:
        if kind in pictures.SUFFIXES:
            pictures.write(temporary, label, kind)
        elif kind in hdf5.SUFFIXES:
            hdf5.write(temporary, label)
        else:
            array = label.transpose(2, 1, 0) if like.z_last else label
            medical.write(temporary, array, like.geometry)


def probe(path: Path) -> Layout:
    """Read the layout of an image from its header. Raises CrkdError like `read_image`."""
    with _readable(path) as kind:
        if kind in pictures.SUFFIXES:
            return Layout(*pictures.layout(path))
        if kind in hdf5.SUFFIXES:
            return Layout(*hdf5.layout(path))
        return Layout(*medical.layout(path))


def label_name(path: Path) -> str:
    """Return the file name of the mask of image `path`: the same, but PNG in place of lossy JPG."""
    if suffix(path) in (".jpg", ".jpeg"):
        return f"{stem(path)}.png"
    return path.name


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
            raise CrkdError(
                f"{path} is a color picture, not a label map; save it with one number per class"
            )
    elif len(array) != 1:
        raise CrkdError(f"{path} has {len(array)} channels; a label map has one")
    label: NDArray[Any] = array[0]
    return label


def _as_integers(array: NDArray[Any], path: Path) -> NDArray[Any]:
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind in "iu":
        return array
    rounded = np.rint(array)
    if not np.array_equal(rounded, array):
        raise CrkdError(
            f"{path} contains fractions, not class numbers; save the label map with integers"
        )
    integers: NDArray[np.int64] = rounded.astype(np.int64)
    return integers


@contextmanager
def _readable(path: Path) -> Iterator[str]:
    """Yield the suffix of `path`, and turn whatever a reader raises into a one-line CrkdError."""
    kind = _checked_suffix(path)
    try:
        yield kind
    except (CrkdError, MemoryError):
        raise
    except Exception as error:  # damaged files fail in many ways, which all mean the same
        reason = " ".join(str(error).split())[-160:] or type(error).__name__
        advice = "copy the file again"
        if not path.name.endswith(kind):
            advice = f"end its name in {kind}, or {advice}"
        raise CrkdError(
            f"{path} cannot be read, it may be truncated or in another format ({reason}); {advice}"
        ) from None


def _checked_suffix(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise CrkdError(f"{path} cannot be read: {error.strerror or error}") from None
    if not head:
        raise CrkdError(f"{path} is empty; copy or download it again")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise CrkdError(f"{path} is a web page with the name of an image; download the image again")
    kind = suffix(path)
    if not kind:
        raise CrkdError(f"{path} has no supported format; use one of {', '.join(SUFFIXES)}")
    return kind
