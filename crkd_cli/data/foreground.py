"""Positions of foreground voxels, from which training patches with foreground are chosen."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

POSITIONS = 1000  # at most, of every class in a case


def sample_positions(label: NDArray[Any], class_count: int, seed: int) -> NDArray[np.int32]:
    """Draw voxels of every foreground class in the class numbers `label` [*S].

    Returns [1 + axes of *S, N]: the class numbers in ascending order, and the indices of the voxels
    on every axis. The draws depend on `seed` and on the voxels of a class alone.
    """
    planes = label.reshape(-1, *label.shape[-2:])
    totals = np.zeros(class_count + 1, np.int64)
    for plane in planes:
        totals += np.bincount(plane.ravel(), minlength=class_count + 1)
    ranks = [_draw_ranks(int(total), [seed, number]) for number, total in enumerate(totals)]
    found: list[list[NDArray[np.int64]]] = [[] for _ in range(class_count)]
    seen = [0] * class_count
    for start, plane in zip(range(0, label.size, planes[0].size), planes, strict=True):
        values = plane.ravel()
        (voxels,) = values.nonzero()
        values = values[voxels]
        for number in np.flatnonzero(np.bincount(values)).tolist():
            if number == class_count:  # ignored
                continue
            of_class = voxels[values == number]
            first, last = ranks[number].searchsorted([seen[number], seen[number] + len(of_class)])
            found[number].append(start + of_class[ranks[number][first:last] - seen[number]])
            seen[number] += len(of_class)
    classes = [np.concatenate([np.empty(0, np.int64), *parts]) for parts in found]
    numbers = np.repeat(np.arange(class_count), [len(indices) for indices in classes])
    axes = np.unravel_index(np.concatenate(classes), label.shape)
    return np.stack([numbers, *axes]).astype(np.int32)


def choose_position(
    positions: NDArray[np.int32], turn: int, class_count: int, rng: np.random.Generator
) -> tuple[int, ...] | None:
    """Choose a voxel of the class whose turn it is, else of another one; None if there is none.

    `positions` [1 + axes, N] are those of a case. Turns 0, 1, … go through the foreground classes.
    """
    numbers = positions[0]
    if not len(numbers):
        return None
    number = 1 + turn % (class_count - 1)
    first, last = numbers.searchsorted([number, number + 1])
    if first == last:
        number = rng.choice(np.unique(numbers))
        first, last = numbers.searchsorted([number, number + 1])
    voxel: list[int] = positions[1:, rng.integers(first, last)].tolist()
    return tuple(voxel)


def _draw_ranks(count: int, seed: list[int]) -> NDArray[np.int64]:
    """Return which of `count` voxels are recorded, in ascending order."""
    if count <= POSITIONS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, POSITIONS, replace=False))
