"""Read NRRD files: .nrrd, and .nhdr with the voxels in another file of the same folder."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw.geometry import Affine, Geometry, affine_from
from crkd_cli.data.raw.limits import check_declared_size, too_many_axes
from crkd_cli.data.raw.neighbor import neighbor
from crkd_cli.data.raw.voxels import read_exactly

SUFFIXES = (".nrrd", ".nhdr")
MAX_HEADER_BYTES = 1 << 22  # segmentations of some programs list thousands of names
TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": (
        "longlong",
        "long long",
        "long long int",
        "signed long long",
        "signed long long int",
        "int64",
        "int64_t",
    ),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
TYPE_CODES = {name: code for code, names in TYPES.items() for name in names}
ENCODINGS = {
    "raw": "raw",
    "gzip": "gzip",
    "gz": "gzip",
    "ascii": "text",
    "text": "text",
    "txt": "text",
}
SPATIAL_KINDS = ("domain", "space", "time", "???", "none")
# Signs that turn the first axes of a space into left, posterior, superior.
SPACES = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}


class _Header(NamedTuple):
    """The fields of a file, in lower case and without spaces in their names."""

    fields: dict[str, str]
    length: int  # bytes, with the empty line at the end

    def get(self, *names: str) -> str | None:
        """Return the text of the field that has one of `names`."""
        return next((self.fields[name] for name in names if name in self.fields), None)

    def require(self, *names: str) -> str:
        """Return the text of a field. Raises ValueError if it is missing."""
        text = self.get(*names)
        if text is None:
            raise ValueError(f"the header has no {names[0]}")
        return text


class _Layout(NamedTuple):
    """How the voxels are arranged."""

    size: tuple[int, ...]  # of the spatial axes, x first
    channels: int
    channel_axis: int | None  # of the file, fastest first
    axes: tuple[int, ...]  # the spatial axes among those of the file


def read(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Read the voxels as [C, *S] (z first), and the geometry."""
    header = _read_header(path)
    layout = _layout(path, header)
    sizes = _sizes(header)
    dtype = _dtype(header)
    voxels = _read_voxels(path, header, math.prod(sizes), dtype).reshape(sizes[::-1])
    if layout.channel_axis is None:
        array = voxels.reshape(1, *layout.size[::-1])
    else:
        array = np.moveaxis(voxels, len(sizes) - 1 - layout.channel_axis, 0)
        array = array.reshape(layout.channels, *layout.size[::-1])
    array = array.astype(dtype.newbyteorder("="), copy=False)
    return array, _geometry(header, layout)


def layout(path: Path) -> tuple[int, tuple[int, ...], Geometry, bool]:
    """Return the number of channels, *S (z first), the geometry, and whether they are colors."""
    header = _read_header(path)
    layout = _layout(path, header)
    is_color = layout.channels == 3 and _dtype(header) == np.uint8
    return layout.channels, layout.size[::-1], _geometry(header, layout), is_color


def data_file(header: Path) -> Path | None:
    """Return the file with the voxels, if they are not in the file of the header."""
    name = _read_header(header).get("datafile")
    return None if name is None else neighbor(header, name)


def _read_header(path: Path) -> _Header:
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        if not file.readline(16).startswith(b"NRRD000"):
            raise ValueError("no NRRD header")
        while line := file.readline(MAX_HEADER_BYTES):
            text = line.decode("utf-8", errors="surrogateescape").strip()
            if not text:
                break
            if file.tell() > MAX_HEADER_BYTES:
                raise ValueError("the header has no end")
            name, colon, value = text.partition(":")
            if not text.startswith("#") and colon and not value.startswith("="):
                fields[name.strip().lower().replace(" ", "")] = value.strip()
        return _Header(fields, file.tell())


def _sizes(header: _Header) -> tuple[int, ...]:
    """Return the sizes of all axes, fastest first."""
    sizes = tuple(int(word) for word in header.require("sizes").split())
    if int(header.require("dimension")) != len(sizes) or not 1 <= len(sizes) <= 16:
        raise ValueError(f"dimension does not fit sizes {sizes}")
    if min(sizes) < 1:
        raise ValueError(f"sizes are {sizes}")
    return sizes


def _dtype(header: _Header) -> np.dtype[Any]:
    name = header.require("type").lower()
    if name not in TYPE_CODES:
        raise ValueError(f"unknown type {name!r}")
    dtype = np.dtype(TYPE_CODES[name])
    is_text = _encoding(header) == "text"
    if dtype.itemsize == 1 or is_text:
        return dtype
    endian = header.require("endian").lower()
    if endian not in ("little", "big"):
        raise ValueError(f"unknown endian {endian!r}")
    return dtype.newbyteorder("<" if endian == "little" else ">")


def _encoding(header: _Header) -> str:
    name = header.require("encoding").lower()
    if name not in ENCODINGS:
        raise ValueError(f"unknown encoding {name!r}")
    return ENCODINGS[name]


def _layout(path: Path, header: _Header) -> _Layout:
    """Tell the spatial axes from the channels."""
    sizes = _sizes(header)
    channel_axes = [axis for axis in range(len(sizes)) if not _is_spatial(header, axis)]
    axes = [axis for axis in range(len(sizes)) if axis not in channel_axes]
    while len(axes) > 3 and sizes[axes[-1]] == 1:
        axes.pop()
    if len(channel_axes) > 1 or len(axes) not in (2, 3):
        raise too_many_axes(path, sizes)
    channel_axis = channel_axes[0] if channel_axes else None
    channels = 1 if channel_axis is None else sizes[channel_axis]
    return _Layout(tuple(sizes[axis] for axis in axes), channels, channel_axis, tuple(axes))


def _is_spatial(header: _Header, axis: int) -> bool:
    kinds = (header.get("kinds") or "").split()
    vectors = _vectors(header.get("spacedirections"))
    if axis < len(vectors) and vectors[axis] is not None:
        return True
    if axis < len(kinds):
        return kinds[axis].lower() in SPATIAL_KINDS
    return axis >= len(vectors)


def _read_voxels(path: Path, header: _Header, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the voxels as the file contains them, [count]."""
    name = header.get("datafile")
    file = path if name is None else neighbor(path, name)
    start = header.length if name is None else 0
    encoding = _encoding(header)
    size = count * dtype.itemsize
    check_declared_size(file, size, compressed=encoding != "raw")
    with file.open("rb") as stream:
        stream.seek(start)
        _skip_lines(stream, header)
        skipped = int(header.get("byteskip") or 0)
        if encoding == "text":
            return _parse_text(stream.read(), count, dtype)
        if skipped == -1 and encoding == "raw":  # the voxels are the last bytes of the file
            stream.seek(-size, 2)
            skipped = 0
        compressed = encoding == "gzip"
        return read_exactly(stream, size, compressed=compressed, skip=skipped).view(dtype)


def _skip_lines(stream: IO[bytes], header: _Header) -> None:
    for _ in range(int(header.get("lineskip") or 0)):
        if not stream.readline():
            raise EOFError("the voxels are missing")


def _parse_text(content: bytes, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    words = content.split()
    if len(words) != count:
        raise EOFError(f"{len(words)} of {count} voxels")
    return np.array(words).astype(dtype)


def _geometry(header: _Header, layout: _Layout) -> Geometry:
    vectors = _vectors(header.get("spacedirections"))
    columns = [vectors[axis] for axis in layout.axes if axis < len(vectors)]
    if len(columns) == len(layout.axes) and all(column is not None for column in columns):
        return _oriented(header, np.array(columns, dtype=np.float64).T)
    spacing = _per_axis(header, "spacings", layout)
    if spacing is None or not all(map(_is_length, spacing)):
        return Geometry(None, ())
    start = _per_axis(header, "axismins", layout)
    if start is None or not np.isfinite(start).all():
        return Geometry(tuple(spacing), ())
    return Geometry(tuple(spacing), (_unoriented(header, layout, spacing, start),))


def _per_axis(header: _Header, name: str, layout: _Layout) -> list[float] | None:
    """Return the numbers of a field for the spatial axes, or None if it lacks some."""
    numbers = _numbers((header.get(name) or "").split())
    if len(numbers) <= max(layout.axes):
        return None
    return [numbers[axis] for axis in layout.axes]


def _unoriented(
    header: _Header, layout: _Layout, spacing: list[float], start: list[float]
) -> Affine:
    """Return the affine of a file that states where its axes start, but no space: as ITK, LPS."""
    centerings = (header.get("centerings") or header.get("centers") or "").split()
    origin = []
    for axis, step, low in zip(layout.axes, spacing, start, strict=True):
        is_node = axis < len(centerings) and centerings[axis].lower() == "node"
        origin.append(low if is_node else low + step / 2)
    return affine_from(tuple(spacing), tuple(origin), np.eye(len(spacing)))


def _oriented(header: _Header, columns: NDArray[np.float64]) -> Geometry:
    """Return the geometry of a file with space directions, one column per axis."""
    spacing = np.linalg.norm(columns, axis=0)
    if not all(map(_is_length, spacing.tolist())):
        return Geometry(None, ())
    origin = _vectors(header.get("spaceorigin"))
    start = origin[0] if origin and origin[0] is not None else (0.0,) * len(columns)
    fits = columns.shape[1] <= len(columns) == len(start)
    if not fits or not np.isfinite(start).all():
        raise ValueError("space origin does not fit space directions")
    signs = SPACES.get((header.get("space") or "").lower(), (1,) * len(columns))
    signs_column = np.array(signs[: len(columns)], dtype=np.float64)
    affine: Affine = affine_from(
        tuple(spacing.tolist()),
        tuple((signs_column * np.array(start)).tolist()),
        signs_column[:, None] * columns / spacing,
    )
    return Geometry(tuple(spacing.tolist()), (affine,))


def _vectors(text: str | None) -> list[tuple[float, ...] | None]:
    """Parse "(1,0,0) none (0,1,0)", where spaces may be anywhere."""
    vectors: list[tuple[float, ...] | None] = []
    for part in (text or "").replace("none", "()").split(")")[:-1]:
        _, _, inside = part.partition("(")
        numbers = _numbers(inside.split(",")) if inside.strip() else []
        is_vector = bool(numbers) and all(map(math.isfinite, numbers))
        vectors.append(tuple(numbers) if is_vector else None)
    return vectors


def _numbers(words: Iterable[str]) -> list[float]:
    return [float(word) for word in words]


def _is_length(value: float) -> bool:
    return math.isfinite(value) and value > 0
