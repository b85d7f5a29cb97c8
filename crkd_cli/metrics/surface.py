"""Distances between the surfaces of two masks, in 2D and 3D: found once per pair, they serve every score.

A surface voxel is one of the mask with a face neighbor outside it (outside the image counts as outside).
Empty masks, as the strict protocol scores them:

| prediction | truth | distances            | nsd |
|------------|-------|----------------------|-----|
| empty      | empty | NaN, nothing to say  | 1   |
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
    assd: float  # mean over both surfaces' voxels
    asd: float  # mean distance of the prediction's surface from the truth's
    nsd: float  # share of both surfaces that lies within the tolerance of the other


def surface(prediction: Mask, truth: Mask, spacing: Sequence[float], tolerance: float) -> Surface:
    """Scores of `prediction` [*S] against `truth` [*S]; `spacing` per axis and `tolerance` in mm or in voxels."""
    found, wanted = bool(prediction.any()), bool(truth.any())
    if not found and not wanted:
        return Surface(math.nan, math.nan, math.nan, 1.0)
    if not found or not wanted:
        diagonal = math.hypot(
            *(side * step for side, step in zip(truth.shape, spacing, strict=True))
        )
        return Surface(diagonal, diagonal, diagonal, 0.0)
    there, back = directed(prediction, truth, spacing)
    within = np.count_nonzero(there <= tolerance) + np.count_nonzero(back <= tolerance)
    return Surface(
        hd95=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        assd=float((there.sum() + back.sum()) / (len(there) + len(back))),
        asd=float(there.mean()),
        nsd=float(within / (len(there) + len(back))),
    )


def directed(
    prediction: Mask, truth: Mask, spacing: Sequence[float]
) -> tuple[Distances, Distances]:
    """Distances of the surface voxels of `prediction` to the surface of `truth`, and back, in C order; neither is empty.

    Surfaces are thin, so trees over their voxels are several times faster than transforms of the whole box. The
    scattered answer of an untrained network is not thin: there the transforms win. Both give the same numbers.
    """
    box = bounding_box(prediction | truth)
    ours, theirs = border(prediction[box]), border(truth[box])
    if (
        max(np.count_nonzero(ours), np.count_nonzero(theirs)) > ours.size // 20
    ):  # where both take about as long
        return distance_transform_edt(~theirs, spacing)[ours], distance_transform_edt(
            ~ours, spacing
        )[theirs]
    here, there = _points(ours, spacing), _points(theirs, spacing)
    return _tree(there).query(here)[0], _tree(here).query(there)[0]


def _points(mask: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Coordinates [N, dims] of the voxels of `mask`, in C order."""
    indices = np.unravel_index(np.flatnonzero(mask), mask.shape)
    return np.column_stack([index * step for index, step in zip(indices, spacing, strict=True)])


def _tree(points: NDArray[np.float64]) -> "cKDTree[None]":
    # Points of a grid fill space evenly: the sliding midpoint makes as good a tree as the median in half the time.
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
    """Voxels of `mask` that have a face neighbor outside it."""
    inside: NDArray[Any] = np.pad(mask, 1)
    core = (slice(1, -1),) * mask.ndim
    inner = mask.copy()
    for axis in range(mask.ndim):
        for shift in (slice(None, -2), slice(2, None)):
            inner &= inside[(*core[:axis], shift, *core[axis + 1 :])]
    return mask & ~inner
