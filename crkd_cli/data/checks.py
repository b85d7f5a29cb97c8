"""Whether a NIfTI file is whole. ITK reads a truncated one without a word and fills up with zeros."""

import gzip
import math
import struct
from pathlib import Path


def check_nifti(path: Path) -> None:
    """Raises EOFError, OSError or ValueError unless `path` holds all the voxels that its header declares."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as stream:
        head = stream.read(544)
        needed = _declared(head)
        size = len(head)
        while chunk := stream.read(1 << 20):    # to the end: gzip checks its sum there
            size += len(chunk)
    if size < needed:
        raise EOFError(f"{size} of {needed} bytes")


def _declared(head: bytes) -> int:
    """Bytes that the header (NIfTI-1 or 2, either byte order) declares, itself included."""
    for order in "<>":
        if len(head) >= 348 and struct.unpack_from(f"{order}i", head)[0] == 348:
            count, *dims = struct.unpack_from(f"{order}8h", head, 40)
            bits, start = struct.unpack_from(f"{order}h", head, 72)[0], struct.unpack_from(f"{order}f", head, 108)[0]
            return int(start) + math.prod(dims[:count]) * bits // 8
        if len(head) >= 540 and struct.unpack_from(f"{order}i", head)[0] == 540:
            count, *dims = struct.unpack_from(f"{order}8q", head, 16)
            bits, start = struct.unpack_from(f"{order}h", head, 14)[0], struct.unpack_from(f"{order}q", head, 168)[0]
            return int(start) + math.prod(dims[:count]) * bits // 8
    raise ValueError("no NIfTI header")
