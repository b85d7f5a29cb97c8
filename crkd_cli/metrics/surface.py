"""Distances between the surfaces of two masks, in 2D and 3D, computed once for all scores.

A surface voxel is a voxel of the mask with a face neighbor outside it, or at the image's edge.
Empty masks, as the strict protocol scores them:

| prediction | truth | distances            | nsd |
|------------|-------|----------------------|-----|
| empty      | empty | NaN (undefined)      | NaN |
| one of the two empty | | the image's diagonal | 0   |
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

Mask = NDArray[np.bool_]
Distances = NDArray[np.float64]


class Surface(NamedTuple):
    """Scores of one mask; distances in the unit of the spacing."""

    hd95: float  # the larger of the two directed 95th percentiles
    assd: float  # mean distance over the voxels of both surfaces
    asd: float  # mean distance of the prediction's surface from that of the truth
    nsd: float  # share of both surfaces within the tolerance of the other


def surface(prediction: Mask, truth: Mask, spacing: Sequence[float], tolerance: float) -> Surface:
    """Score `prediction` [*S] against `truth` [*S].

    `spacing` (per axis) and `tolerance` are in mm or in voxels.
    """
    predicted, present = bool(prediction.any()), bool(truth.any())
    if not predicted and not present:
        return Surface(math.nan, math.nan, math.nan, math.nan)
    if not predicted or not present:
        sides = [side * step for side, step in zip(truth.shape, spacing, strict=True)]
        diagonal = math.hypot(*sides)
        return Surface(diagonal, diagonal, diagonal, 0.0)
    to_truth, to_prediction = directed(prediction, truth, spacing)
    count = len(to_truth) + len(to_prediction)
    within = np.count_nonzero(to_truth <= tolerance) + np.count_nonzero(to_prediction <= tolerance)
    return Surface(
        hd95=float(max(np.percentile(to_truth, 95), np.percentile(to_prediction, 95))),
        assd=float((to_truth.sum() + to_prediction.sum()) / count),
        asd=float(to_truth.mean()),
        nsd=float(within / count),
    )


def directed(
    prediction: Mask, truth: Mask, spacing: Sequence[float]
) -> tuple[Distances, Distances]:
    """Return the distances from the surface voxels of each mask to the other surface, in C order.

    Neither mask may be empty. Surfaces are thin, so trees of their voxels are several times faster
    than distance transforms of the box. The scattered predictions of an untrained network are not
    thin, and a search is slow if the surfaces are far apart, as when nearly everything is
    foreground: there the transforms win. Both give the same numbers.
    """
    box = bounding_box(prediction | truth)
    predicted, true = border(prediction[box]), border(truth[box])
    largest = max(np.count_nonzero(predicted), np.count_nonzero(true))
    if largest <= predicted.size // 20:  # else building the trees would take longer
        points = _points(predicted, spacing), _points(true, spacing)
        searches = (_tree(points[1]), points[0]), (_tree(points[0]), points[1])
        # Both ways take about as long at a quarter of a step per voxel of the box.
        if sum(_steps(*search, spacing) for search in searches) < predicted.size / 4:
            to_truth, to_prediction = (tree.query(start)[0] for tree, start in searches)
            return to_truth, to_prediction
    to_truth = distance_transform_edt(~true, spacing)[predicted]
    to_prediction = distance_transform_edt(~predicted, spacing)[true]
    return to_truth, to_prediction


def _steps(tree: "cKDTree[None]", points: NDArray[np.float64], spacing: Sequence[float]) -> float:
    """Estimate how much work it is to search `tree` for the neighbors of `points`.

    It grows with the distance in voxels, which a sample of the points shows.
    """
    distances, _ = tree.query(points[:: 1 + len(points) // 256])
    return len(points) * (1 + float(distances.mean()) / (3 * float(np.mean(spacing))))


def _points(mask: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Return the coordinates [N, dims] of the voxels of `mask`, in C order."""
    indices = np.unravel_index(np.flatnonzero(mask), mask.shape)
    return np.column_stack([index * step for index, step in zip(indices, spacing, strict=True)])


def _tree(points: NDArray[np.float64]) -> "cKDTree[None]":
    # Grid points fill space evenly: the sliding midpoint gives as good a tree as the median, in
    # half the time.
    return cKDTree(points, leafsize=32, balanced_tree=False)


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Return the smallest box around the voxels of `mask`, which must not be empty."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        occupied = np.flatnonzero(mask.any(others))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)


def border(mask: Mask) -> Mask:
    """Return the voxels of `mask` that have a face neighbor outside it."""
    inside: NDArray[Any] = np.pad(mask, 1)
    core = (slice(1, -1),) * mask.ndim
    inner = mask.copy()
    for axis in range(mask.ndim):
        for shift in (slice(None, -2), slice(2, None)):
            inner &= inside[(*core[:axis], shift, *core[axis + 1 :])]
    return mask & ~inner
