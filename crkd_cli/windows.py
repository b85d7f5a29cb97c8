"""Windows and padding for any number of spatial axes."""

from collections.abc import Sequence
from itertools import product

Slices = tuple[slice, ...]


def window_starts(length: int, patch: int, stride: int) -> list[int]:
    """Place windows of `patch` so that they cover an axis; the last one is shifted inside.

    For length 10, patch 4 and stride 3:

        0123456789
        ####......  0
        ...####...  3
        ......####  6
    """
    last = max(length - patch, 0)
    return [*range(0, last, stride), last]


def windows(shape: Sequence[int], patch: Sequence[int], stride: Sequence[int]) -> list[Slices]:
    """List all windows of `patch` over `shape`, the last axis varying fastest."""
    starts = [
        window_starts(length, side, step)
        for length, side, step in zip(shape, patch, stride, strict=True)
    ]
    return [_window(corner, patch) for corner in product(*starts)]


def _window(corner: Sequence[int], patch: Sequence[int]) -> Slices:
    return tuple(slice(start, start + side) for start, side in zip(corner, patch, strict=True))


def padding(shape: Sequence[int], patch: Sequence[int]) -> list[tuple[int, int]]:
    """Return (before, after) for every axis, so that `shape` is at least `patch` and centered."""
    missing = [max(side - length, 0) for length, side in zip(shape, patch, strict=True)]
    return [(total // 2, total - total // 2) for total in missing]
