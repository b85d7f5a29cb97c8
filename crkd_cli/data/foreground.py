"""Positions of foreground voxels, from which training patches with foreground are chosen."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

POSITIONS = 1000  # at most, of every class in a case


def sample_positions(label: NDArray[Any], class_count: int, seed: int) -> NDArray[np.int32]:
    """Draw voxels of every foreground class in the class numbers `label` [*S].

    Returns [1 + axes of *S, N]: the class numbers in ascending order, and the indices of the voxels
    on every axis. The draws depend on `seed` and on the voxels of a class alone.
    """
    boxes = ndimage.find_objects(label)[: class_count - 1]
    positions = [np.empty((1 + label.ndim, 0), np.int32)]
    for number, box in enumerate(boxes, start=1):
        if box is None:
            continue
        inside = label[box]
        voxels = np.flatnonzero(inside == number)
        if len(voxels) > POSITIONS:
            rng = np.random.default_rng([seed, number])
            voxels = voxels[np.sort(rng.choice(len(voxels), POSITIONS, replace=False))]
        numbers = np.full(len(voxels), number)
        axes = np.unravel_index(voxels, inside.shape)
        shifted = [axis + side.start for axis, side in zip(axes, box, strict=True)]
        positions.append(np.stack([numbers, *shifted]).astype(np.int32))
    return np.concatenate(positions, axis=1)


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
