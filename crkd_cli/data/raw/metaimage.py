"""Read MetaImage files: .mha, and .mhd with the voxels in another file of the same folder."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw.geometry import Geometry, affine_from
from crkd_cli.data.raw.limits import check_declared_size, too_many_axes
from crkd_cli.data.raw.neighbor import neighbor
from crkd_cli.data.raw.voxels import read_exactly
from crkd_cli.errors import CrkdError

SUFFIXES = (".mha", ".mhd")
MAX_LINES, MAX_LINE_BYTES = 1000, 1 << 16
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
LOCAL = "local"


class _Header:
    """The fields of a file, with names in lower case."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fields: dict[str, str] = {}
        with path.open("rb") as file:
            for _ in range(MAX_LINES):
                line = file.readline(MAX_LINE_BYTES)
                name, equals, value = line.decode("utf-8", "surrogateescape").partition("=")
                if not equals:
                    raise ValueError("no MetaImage header")
                self._fields[name.strip().lower()] = value.strip()
                if name.strip().lower() == "elementdatafile":
                    break
            self.length = file.tell()
        if "elementdatafile" not in self._fields:
            raise ValueError("the header has no end")

    def get(self, *names: str, default: str = "") -> str:
        """Return the text of the field that has one of `names`."""
        lower = (name.lower() for name in names)
        return next((self._fields[name] for name in lower if name in self._fields), default)

    def is_true(self, *names: str) -> bool:
        """Return whether a field is True; a missing field is not."""
        text = self.get(*names, default="false").lower()
        if text not in ("true", "false", "1", "0"):
            raise ValueError(f"{names[0]} is {text!r}")
        return text in ("true", "1")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the numbers, in the byte order of the file."""
        name = self.get("ElementType").upper().removesuffix("_ARRAY")
        if name not in TYPES:
            raise ValueError(f"unknown ElementType {name!r}")
        is_big = self.is_true("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
        return np.dtype(TYPES[name]).newbyteorder(">" if is_big else "<")

    @property
    def channels(self) -> int:
        """The number of values per voxel."""
        return int(self.get("ElementNumberOfChannels", default="1"))

    @property
    def size(self) -> tuple[int, ...]:
        """The number of voxels per axis, x first."""
        size = [int(word) for word in self.get("DimSize").split()]
        if not 2 <= len(size) <= 10 or int(self.get("NDims")) != len(size):
            raise ValueError(f"NDims is {self.get('NDims')!r}, DimSize {self.get('DimSize')!r}")
        if min(size) < 1 or self.channels < 1:
            raise ValueError(f"DimSize is {size}, with {self.channels} channels")
        while len(size) > 3 and size[-1] == 1:
            size.pop()
        if len(size) > 3:
            raise too_many_axes(self.path, size)
        return tuple(size)

    @property
    def data_file(self) -> Path | None:
        """The file with the voxels, if they do not follow the header."""
        name = self.get("ElementDataFile")
        if name.lower() == LOCAL:
            return None
        if name == "LIST" or "%" in name:
            raise CrkdError(f"{self.path} has its voxels in several files; save it as one file")
        return neighbor(self.path, name)

    def numbers(self, *names: str) -> list[float]:
        """Return the numbers in a field, which may be missing."""
        return [float(word) for word in self.get(*names).split()]


def read(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Read the voxels as [C, *S] (z first), and the geometry."""
    header = _Header(path)
    size, channels, dtype = header.size, header.channels, header.dtype
    voxels = _read_voxels(header, math.prod(size) * channels, dtype)
    array = np.moveaxis(voxels.reshape(*size[::-1], channels), -1, 0)
    array = np.ascontiguousarray(array, dtype.newbyteorder("="))
    return array, _geometry(header)


def layout(path: Path) -> tuple[int, tuple[int, ...], Geometry, bool]:
    """Return the number of channels, *S (z first), the geometry, and whether they are colors."""
    header = _Header(path)
    is_color = header.channels == 3 and header.dtype == np.uint8
    return header.channels, header.size[::-1], _geometry(header), is_color


def data_file(header: Path) -> Path | None:
    """Return the file with the voxels, if they are not in the file of the header."""
    return _Header(header).data_file


def _read_voxels(header: _Header, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the numbers as the file contains them, [count]."""
    file = header.data_file
    start = header.length if file is None else 0
    file = file or header.path
    size = count * dtype.itemsize
    is_compressed = header.is_true("CompressedData")
    is_text = header.get("BinaryData", default="true").lower() == "false"
    check_declared_size(file, size, compressed=is_compressed or is_text)
    skipped = int(header.get("HeaderSize", default="0"))
    with file.open("rb") as stream:
        stream.seek(start)
        if is_text:
            words = stream.read().split()
            if len(words) != count:
                raise EOFError(f"{len(words)} of {count} numbers")
            return np.array(words).astype(dtype)
        if skipped == -1 and not is_compressed:  # the voxels are the last bytes of the file
            stream.seek(-size, 2)
            skipped = 0
        return read_exactly(stream, size, compressed=is_compressed, skip=skipped).view(dtype)


def _geometry(header: _Header) -> Geometry:
    axes = len(header.size)
    declared = int(header.get("NDims"))
    spacing = header.numbers("ElementSpacing", "ElementSize")[:axes]
    if len(spacing) != axes or not all(math.isfinite(step) and step > 0 for step in spacing):
        return Geometry(None, ())
    matrix = np.array(header.numbers("TransformMatrix", "Rotation", "Orientation"))
    if matrix.size != declared**2 or not np.isfinite(matrix).all():
        return Geometry(tuple(spacing), ())
    # A line of the matrix is the direction of an axis.
    direction = matrix.reshape(declared, declared).T[:axes, :axes]
    origin = np.zeros(declared)
    stated = header.numbers("Offset", "Position", "Origin")
    if len(stated) == declared and np.isfinite(stated).all():
        origin[:] = stated
    affine = affine_from(tuple(spacing), tuple(origin[:axes].tolist()), direction)
    return Geometry(tuple(spacing), (affine,))
