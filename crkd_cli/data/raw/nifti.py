"""What ITK keeps quiet about: it fills a truncated NIfTI file up with zeros, turns NaN into zero, and overlooks a full disk."""

import gzip
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 1 << 20  # a multiple of every voxel's size


def check_nifti(path: Path) -> int:
    """The number of voxels that are NaN or infinite.

    Raises EOFError, OSError or ValueError unless `path` holds all the voxels that its header declares.
    """
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as stream:
        head = stream.read(544)
        start, size, kind = _declared(head)
        stream.seek(start)
        got = bad = 0
        while chunk := stream.read(CHUNK):  # to the end: gzip checks its sum there
            got += len(chunk)
            if kind is not None:
                whole = len(chunk) // kind.itemsize
                bad += int(np.count_nonzero(~np.isfinite(np.frombuffer(chunk, kind, whole))))
    if got < size:
        raise EOFError(f"{got} of {size} bytes of voxels")
    return bad


def write_whole(image: Any, path: Path) -> None:
    """Writes a SimpleITK image, and looks whether all of it arrived. Raises OSError."""
    import SimpleITK

    sitk: Any = SimpleITK  # its annotations are incomplete
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
        if path.name.endswith((".nii", ".nii.gz")):
            check_nifti(path)
        elif not np.array_equal(
            sitk.GetArrayFromImage(sitk.ReadImage(str(path))), sitk.GetArrayViewFromImage(image)
        ):
            raise EOFError("other voxels than were written")
    except (RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[-80:]
        raise OSError(f"the file did not become whole, is the disk full? ({reason})") from None


def _declared(head: bytes) -> tuple[int, int, np.dtype[np.floating] | None]:
    """(first byte, bytes, type if floating) of the voxels, from a header of NIfTI-1 or 2 in either byte order."""
    for order in "<>":
        if len(head) >= 348 and struct.unpack_from(f"{order}i", head)[0] == 348:
            count, *dims = struct.unpack_from(f"{order}8h", head, 40)
            kind, bits = struct.unpack_from(f"{order}2h", head, 70)
            start = int(struct.unpack_from(f"{order}f", head, 108)[0])
        elif len(head) >= 540 and struct.unpack_from(f"{order}i", head)[0] == 540:
            kind, bits, count, *dims = struct.unpack_from(f"{order}2h8q", head, 12)
            start = struct.unpack_from(f"{order}q", head, 168)[0]
        else:
            continue
        floating = {16: np.dtype(f"{order}f4"), 64: np.dtype(f"{order}f8")}.get(kind)
        return start, math.prod(dims[:count]) * bits // 8, floating
    raise ValueError("no NIfTI header")
