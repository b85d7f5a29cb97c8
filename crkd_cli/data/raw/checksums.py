"""Check what Pillow does not: checksums of PNG and TIFF files, and the scans of a JPG."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crkd_cli.data.raw.voxels import CHUNK_BYTES
from crkd_cli.errors import CrkdError

PNG_SIGNATURE_BYTES = 8
# Every scan of a progressive JPG visits all pixels; most files have at most a dozen.
MAX_SCANNED_PIXELS = 4e9
START_OF_SCAN = b"\xff\xda"
# Tags of a TIFF.
COMPRESSION = 259
DEFLATE = (8, 32946)
CHUNKS = ((273, 279), (324, 325))  # offsets and sizes of strips, and of tiles


def check_png(path: Path) -> None:
    """Raise ValueError or EOFError unless the checksums of all chunks are correct."""
    content = memoryview(path.read_bytes())
    start, name = PNG_SIGNATURE_BYTES, b""
    while name != b"IEND":
        size = int.from_bytes(content[start : start + 4], "big")
        end = start + 8 + size
        name = bytes(content[start + 4 : start + 8])
        checksum = bytes(content[end : end + 4])
        if len(checksum) < 4:
            raise EOFError("the end of the file is missing")
        if zlib.crc32(content[start + 4 : end]) != int.from_bytes(checksum, "big"):
            raise ValueError(f"wrong checksum in {name.decode('ascii', 'replace')}")
        start = end + 4


def check_jpeg(path: Path, pixels: int) -> None:
    """Raise CrkdError if a JPG makes the decoder visit its pixels too often."""
    scans = path.read_bytes().count(START_OF_SCAN)
    if scans * pixels > MAX_SCANNED_PIXELS:
        raise CrkdError(f"{path} stores its pixels in {scans} scans; save it as PNG")


def check_tiff_page(path: Path, tags: Any) -> None:
    """Raise ValueError or EOFError unless the checksums of a page with these `tags` are correct."""
    if tags.get(COMPRESSION) not in DEFLATE:
        return
    with path.open("rb") as file:
        for offset, size in _chunks(tags):
            file.seek(offset)
            _check_zlib(file.read(size))


def _chunks(tags: Any) -> Iterator[tuple[int, int]]:
    """Yield the offset and the size of every strip or tile."""
    for offsets, sizes in CHUNKS:
        yield from zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=True)


def _check_zlib(content: bytes) -> None:
    """Raise zlib.error or EOFError unless the content is one complete zlib stream."""
    stream = zlib.decompressobj()
    while content and not stream.eof:
        stream.decompress(content, CHUNK_BYTES)
        content = stream.unconsumed_tail
    if not stream.eof:
        raise EOFError("the end of the compressed pixels is missing")
