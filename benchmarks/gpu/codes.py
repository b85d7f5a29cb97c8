"""Arrays of a prepared store as bytes that travel: the scanner's gray levels as integers, compressed without loss.

A normalized scan is a line through integer gray levels, x = low + step · code, where `step` is the smallest difference
between two of its values. The codes are written as differences to their neighbors along the last two axes, which are small.
"""

import json
import lzma
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.errors import CrkdError

LIMIT = 0.5  # of a gray level: the largest error that a restored image may have


def encode(array: NDArray[Any]) -> tuple[bytes, float]:
    """uint8 or float32 `array` [*S], *S two axes or more → bytes, and the largest error after `decode`, in gray levels.

    uint8 arrays are kept exactly. Raises CrkdError if the error is not below half a gray level: the values lie on no grid.
    """
    if array.dtype == np.uint8:
        return _pack(array, {"dtype": "uint8"}), 0.0
    codes, low, step = _grid(array)
    error = float(np.abs(_line(codes, low, step).astype(np.float64) - array).max()) / step
    if not error < LIMIT:
        raise CrkdError(
            f"the values are no integer gray levels: codes would be off by {error:.2g} of the smallest difference"
        )
    return _pack(codes, {"dtype": "float32", "low": low, "step": step}), error


def decode(data: bytes) -> NDArray[Any]:
    """The array that `encode` was given, to within the error it stated."""
    header, _, content = lzma.decompress(data).partition(b"\n")
    facts = json.loads(header)
    planes = np.frombuffer(content, np.uint8).reshape(facts["bytes"], *facts["shape"])
    kind = np.dtype(np.uint8 if facts["bytes"] == 1 else np.uint16)
    codes = planes[0] if facts["bytes"] == 1 else (planes[0].astype(kind) << 8) | planes[1]
    codes = (codes >> 1) ^ -(codes & 1)
    for axis in (-1, -2):
        codes = np.cumsum(codes, axis=axis, dtype=kind)  # wraps round, as the differences did
    return codes if facts["dtype"] == "uint8" else _line(codes, facts["low"], facts["step"])


def _grid(array: NDArray[Any]) -> tuple[NDArray[Any], float, float]:
    """Codes (uint8 where 256 levels do, else uint16), and the line's low and step."""
    values = np.unique(array).astype(np.float64)
    low, span = float(values[0]), float(values[-1] - values[0])
    gaps = np.diff(values)
    # The mean of the single steps, because each carries float32's rounding, which over thousands of levels adds up.
    levels = round(span / float(gaps[gaps < 1.5 * gaps.min()].mean())) if len(gaps) else 0
    if levels > np.iinfo(np.uint16).max:
        raise CrkdError(
            f"the values are no integer gray levels: {levels} levels between the least and the greatest"
        )
    step = span / levels if levels else 1.0
    codes = np.rint((array.astype(np.float64) - low) / step)
    return codes.astype(np.uint8 if levels < 256 else np.uint16), low, step


def _line(codes: NDArray[Any], low: float, step: float) -> NDArray[np.float32]:
    return (low + step * codes.astype(np.float64)).astype(np.float32)


def _pack(codes: NDArray[Any], facts: dict[str, Any]) -> bytes:
    for axis in (-2, -1):
        codes = np.diff(codes, axis=axis, prepend=codes.dtype.type(0))
    signed = codes.view(f"i{codes.itemsize}")
    codes = ((signed << 1) ^ (signed >> 8 * codes.itemsize - 1)).view(
        codes.dtype
    )  # 0, -1, 1, -2 … → 0, 1, 2, 3 …
    high = [] if codes.dtype == np.uint8 else [(codes >> 8).astype(np.uint8)]
    planes = np.stack(
        [*high, codes.astype(np.uint8)]
    )  # apart, because the high bytes are nearly constant
    header = json.dumps({**facts, "shape": codes.shape, "bytes": len(planes)}).encode()
    return lzma.compress(header + b"\n" + planes.tobytes(), preset=6)
