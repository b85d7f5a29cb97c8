"""What NumPy does to arrays of 8 bits, several times as fast."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNTED_AT_ONCE = 1 << 24


def count_bytes(array: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each of the values 0 to 255 occurs, as `np.bincount` does."""
    from PIL import Image

    flat = array.ravel(order="K")
    counts = np.zeros(256, np.int64)
    for start in range(0, flat.size, COUNTED_AT_ONCE):
        row = flat[None, start : start + COUNTED_AT_ONCE]
        counts += Image.fromarray(row).histogram()
    return counts


def look_up(table: NDArray[Any], codes: NDArray[Any]) -> NDArray[Any]:
    """Return `table[codes]` for unsigned codes; it is read-only if both have 8 bits."""
    if not table.dtype == codes.dtype == np.uint8:
        result: NDArray[Any] = table[codes]
        return result
    if np.array_equal(table, np.arange(len(table))):
        return codes
    padded = np.zeros(256, np.uint8)
    padded[: len(table)] = table
    content = codes.tobytes().translate(padded.tobytes())
    return np.frombuffer(content, np.uint8).reshape(codes.shape)
