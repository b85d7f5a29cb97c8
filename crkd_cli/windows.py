"""Geometry for any number of spatial axes: windows, crops and boxes as tuples of slices."""

from collections.abc import Sequence
from itertools import product

Slices = tuple[slice, ...]


def window_starts(length: int, patch: int, stride: int) -> list[int]:
    """Starts of windows of `patch` that cover an axis of `length`, the last one shifted inside.

    length 10, patch 4, stride 3:  0123456789
                                   ####......  0
                                   ...####...  3
                                   ......####  6
    """
    last = max(length - patch, 0)
    return [*range(0, last, stride), last]


def windows(shape: Sequence[int], patch: Sequence[int], stride: Sequence[int]) -> list[Slices]:
    """All windows of `patch` over `shape`, as tuples of slices, the last axis fastest."""
    starts = [window_starts(s, p, d) for s, p, d in zip(shape, patch, stride, strict=True)]
    return [
        tuple(slice(a, a + p) for a, p in zip(corner, patch, strict=True))
        for corner in product(*starts)
    ]


def padding(shape: Sequence[int], patch: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) for every axis so that `shape` is at least `patch`, the content centerd."""
    lacks = [max(p - s, 0) for s, p in zip(shape, patch, strict=True)]
    return [(lack // 2, lack - lack // 2) for lack in lacks]
