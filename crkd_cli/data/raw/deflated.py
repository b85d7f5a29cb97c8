"""DICOM files with compressed tags: how large they become."""

import zlib
from pathlib import Path

from crkd_cli.data.raw.limits import SMALL_BYTES
from crkd_cli.data.raw.voxels import CHUNK_BYTES

SYNTAX = b"1.2.840.10008.1.2.1.99"  # a transfer syntax, the only one that compresses tags
# The tags before it are not compressed. The first of them says where they end.
LENGTH, START = slice(140, 144), 144
HEAD_BYTES = 1 << 10
MAX_RATIO = 20  # of tags and voxels


def check_deflated(path: Path, size: int) -> None:
    """Raise ValueError if a DICOM file of `size` bytes is compressed and much larger inside."""
    limit = max(SMALL_BYTES, MAX_RATIO * size)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if SYNTAX not in head:
            return
        file.seek(START + int.from_bytes(head[LENGTH], "little"))
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        while not stream.eof and (pending := stream.unconsumed_tail or file.read(CHUNK_BYTES)):
            limit -= len(stream.decompress(pending, CHUNK_BYTES))
            if limit < 0:
                raise ValueError("its tags are much larger than the file")
