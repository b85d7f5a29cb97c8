"""The values of DICOM tags, which may be missing or damaged."""

import sys
from collections.abc import MutableSequence
from contextlib import suppress
from typing import Any

import numpy as np

MAX_FRAMES = 1 << 16  # of a file
MAX_NUMBER = 1e6  # of positions and spacings in mm, and of rescalings; more is damage


def check_values(dataset: Any) -> None:
    """Raise ValueError if the voxels of a file cannot be read as its tags say."""
    if integer(dataset, "NumberOfFrames") > MAX_FRAMES:
        raise ValueError("it has too many frames")
    if (bits := integer(dataset, "BitsAllocated")) % 8 and bits != 1:
        raise ValueError("its voxels are not made of bytes")
    for name in ("RescaleSlope", "RescaleIntercept"):
        if dataset.get(name) not in (None, "") and numbers(dataset, name, 1) is None:
            raise ValueError("its values are not numbers")
    if numbers(dataset, "RescaleSlope", 1) == (0.0,):
        raise ValueError("all its values are equal")


def text(dataset: Any, keyword: str) -> str:
    """Return the value of a tag as text, or "" if it is missing."""
    value = dataset.get(keyword)
    if value is None:
        return ""
    if isinstance(value, MutableSequence):
        value = "\\".join(map(str, value))
    return sys.intern(str(value))


def integer(dataset: Any, keyword: str) -> int:
    """Return the value of a tag as a number, or 0."""
    with suppress(Exception):  # damaged, or missing
        return int(dataset.get(keyword) or 0)
    return 0


def numbers(dataset: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return `count` numbers of plausible size, or None."""
    with suppress(Exception):  # damaged, or missing
        value = dataset.get(keyword)
        values = tuple(float(item) for item in (value if count > 1 else (value,)))
        if len(values) == count and (np.abs(values) < MAX_NUMBER).all():  # not NaN
            return values
    return None
