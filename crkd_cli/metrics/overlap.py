"""Overlap of label maps, for all classes at once.

A class that is empty in both maps has no score (NaN); one that is empty in one of them scores 0.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]
Scores = NDArray[np.float64]
COUNTED_AT_ONCE = 2**22  # voxels


def confusion(prediction: Labels, truth: Labels, classes: int) -> NDArray[np.int64]:
    """Count the voxels [K, K] of every predicted class (row) and true class (column).

    Voxels whose true class is K are ignored. Raises ValueError if the shapes differ, or a true
    class is beyond K.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    if truth.max(initial=0) > classes:
        raise ValueError(f"the truth contains class {truth.max()}, but there are {classes} classes")
    columns = classes + 1  # with the ignored voxels
    # The smallest type that can number all pairs of classes.
    dtype = np.dtype(np.uint8 if classes * columns <= 256 else np.int32)
    counts = np.zeros(classes * columns, np.int64)
    # Part by part, because bincount needs 8 bytes a voxel.
    count = 1 + truth.size // COUNTED_AT_ONCE
    parts = (np.array_split(labels.ravel(), count) for labels in (prediction, truth))
    for predicted, true in zip(*parts, strict=True):
        pairs = predicted.astype(dtype) * dtype.type(columns) + true.astype(dtype)
        counts += np.bincount(pairs, minlength=len(counts))
    return counts.reshape(classes, columns)[:, :classes]


def dice(voxels: NDArray[np.int64]) -> Scores:
    """Return 2 |P ∩ T| / (|P| + |T|) of every class [K] from a confusion matrix [K, K].

    NaN if both are empty.
    """
    intersection = np.diagonal(voxels)
    return _ratio(2 * intersection, voxels.sum(0) + voxels.sum(1))


def jaccard(voxels: NDArray[np.int64]) -> Scores:
    """Return |P ∩ T| / |P ∪ T| of every class [K] from a confusion matrix [K, K].

    NaN if both are empty.
    """
    intersection = np.diagonal(voxels)
    return _ratio(intersection, voxels.sum(0) + voxels.sum(1) - intersection)


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> Scores:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)
