"""Read exactly the voxels that a header declares, and verify their checksums."""

import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 1 << 18


def read_exactly(
    file: IO[bytes], size: int, *, compressed: bool, skip: int = 0
) -> NDArray[np.uint8]:
    """Read `size` bytes after the first `skip`, to the end of the file.

    `compressed` content is gzip or zlib. Raises EOFError if bytes are missing, ValueError if more
    follow, and zlib.error if a checksum is wrong.
    """
    if compressed:
        chunks = _inflate(file)
    else:
        file.seek(skip, 1)
        skip = 0
        chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
    content = np.empty(size, np.uint8)
    view = content.data
    received = -skip
    for chunk in chunks:
        end = received + len(chunk)
        if end > size:
            raise ValueError(f"more than the declared {size} bytes of voxels")
        if end > 0:
            view[max(received, 0) : end] = chunk[max(-received, 0) :]
        received = end
    if received < size:
        raise EOFError(f"{max(received, 0)} of {size} bytes of voxels")
    return content


def _inflate(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the decompressed content of a file: one or several streams, and zeros after them."""
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib
    pending = b""
    while True:
        chunk = stream.decompress(pending, CHUNK_BYTES)
        yield chunk
        pending = stream.unconsumed_tail
        if stream.eof:
            pending = stream.unused_data.lstrip(b"\0")
            while not pending and (more := file.read(CHUNK_BYTES)):
                pending = more.lstrip(b"\0")
            if not pending:
                return
            stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        elif not pending and len(chunk) < CHUNK_BYTES:
            pending = file.read(CHUNK_BYTES)
            if not pending:
                raise EOFError("the end of the compressed voxels is missing")
