"""Distances between the surfaces of two masks, in 2D and 3D: found once per pair, they serve every score.

A surface voxel is one of the mask with a face neighbour outside it (outside the image counts as outside).
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

    hd95: float    # the larger of the two directed 95th percentiles
    assd: float    # mean over both surfaces' voxels
    asd: float     # mean distance of the prediction's surface from the truth's
    nsd: float     # share of both surfaces that lies within the tolerance of the other


def surface(prediction: Mask, truth: Mask, spacing: Sequence[float], tolerance: float) -> Surface:
    """Scores of `prediction` [*S] against `truth` [*S]; `spacing` per axis and `tolerance` in mm or in voxels."""
    found, wanted = bool(prediction.any()), bool(truth.any())
    if not found and not wanted:
        return Surface(math.nan, math.nan, math.nan, 1.0)
    if not found or not wanted:
        diagonal = math.hypot(*(side * step for side, step in zip(truth.shape, spacing, strict=True)))
        return Surface(diagonal, diagonal, diagonal, 0.0)
    there, back = directed(prediction, truth, spacing)
    within = np.count_nonzero(there <= tolerance) + np.count_nonzero(back <= tolerance)
    return Surface(
        hd95=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        assd=float((there.sum() + back.sum()) / (len(there) + len(back))),
        asd=float(there.mean()),
        nsd=float(within / (len(there) + len(back))),
    )


def directed(prediction: Mask, truth: Mask, spacing: Sequence[float]) -> tuple[Distances, Distances]:
    """Distances of the surface voxels of `prediction` to the surface of `truth`, and back; neither is empty."""
    box = union_box(prediction, truth)
    ours, theirs = border(prediction[box]), border(truth[box])
    return _distances(ours, theirs, spacing), _distances(theirs, ours, spacing)


def _distances(start: Mask, end: Mask, spacing: Sequence[float]) -> Distances:
    """Distance of every voxel of `start` to the nearest of `end`, in C order; the two ways give the same numbers.

    Surfaces are thin, so a tree over their voxels is several times faster than a transform of the whole box. The
    scattered answer of an untrained network is not thin: there the transform wins.
    """
    if np.count_nonzero(start) > start.size // 32:
        transform: Distances = distance_transform_edt(~end, spacing)[start]
        return transform
    distances: Distances = cKDTree(np.argwhere(end) * spacing).query(np.argwhere(start) * spacing)[0]
    return distances


def union_box(first: Mask, second: Mask) -> tuple[slice, ...]:
    """The smallest box that holds both masks; distances inside it are those of the whole image."""
    both = first | second
    box = []
    for axis in range(both.ndim):
        filled = np.flatnonzero(both.any(tuple(other for other in range(both.ndim) if other != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def border(mask: Mask) -> Mask:
    """Voxels of `mask` that have a face neighbour outside it."""
    inside: NDArray[Any] = np.pad(mask, 1)
    core = (slice(1, -1),) * mask.ndim
    inner = mask.copy()
    for axis in range(mask.ndim):
        for shift in (slice(None, -2), slice(2, None)):
            inner &= inside[(*core[:axis], shift, *core[axis + 1 :])]
    return mask & ~inner
