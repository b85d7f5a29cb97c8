"""Check NIfTI files: ITK fills truncated ones with zeros, and reads NaN as zero."""

import gzip
import math
from importlib import import_module
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

CHUNK_BYTES = 1 << 20  # a multiple of the size of every floating-point voxel
HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348


def count_nonfinite(path: Path) -> int:
    """Return the number of voxels that are NaN or infinite, reading the file to its end.

    Raises EOFError, OSError or ValueError if the header is invalid, if voxels are missing, or if
    the checksum of a gzip file is wrong.
    """
    with _open(path) as stream:
        offset, size, dtype = _voxels(stream.read(HEADER_BYTES))
        stream.seek(offset)
        received = nonfinite = 0
        while chunk := stream.read(CHUNK_BYTES):
            received += len(chunk)
            if dtype.kind == "f":
                values = np.frombuffer(chunk, dtype, len(chunk) // dtype.itemsize)
                nonfinite += int(np.count_nonzero(~np.isfinite(values)))
    if received < size:
        raise EOFError(f"{received} of {size} bytes of voxels")
    return nonfinite


def _open(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed if it is gzip, whatever its suffix says."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    if compressed:
        return cast("IO[bytes]", gzip.open(path))
    return path.open("rb")


def _voxels(head: bytes) -> tuple[int, int, np.dtype[np.generic]]:
    """Return the offset, the size in bytes and the type of the voxels, from a header."""
    nibabel: Any = import_module("nibabel")  # its type annotations are incomplete
    for header_class in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if header_class.may_contain_header(head):
            length = header_class.template_dtype.itemsize
            header = header_class(head[:length], check=False)
            dtype = header.get_data_dtype()
            size = math.prod(header.get_data_shape()) * dtype.itemsize
            return header.get_data_offset(), size, dtype
    raise ValueError("no NIfTI header")
