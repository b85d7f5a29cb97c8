"""Overlap of label maps, for all classes at once.

A class that is empty in both maps scores 1, a class that is empty in one of them 0.
"""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.uint8]
Scores = NDArray[np.float64]


def confusion(prediction: Labels, truth: Labels, classes: int) -> NDArray[np.int64]:
    """Count the voxels [K, K] of every predicted class (row) and true class (column).

    Raises ValueError if the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    # The smallest type that can number all pairs of classes.
    dtype = np.dtype(np.uint8 if classes**2 <= 256 else np.int32)
    pairs = prediction.ravel().astype(dtype) * dtype.type(classes) + truth.ravel().astype(dtype)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def dice(voxels: NDArray[np.int64]) -> Scores:
    """Return 2 |P ∩ T| / (|P| + |T|) of every class [K] from a confusion matrix [K, K]."""
    intersection = np.diagonal(voxels)
    return _ratio(2 * intersection, voxels.sum(0) + voxels.sum(1))


def jaccard(voxels: NDArray[np.int64]) -> Scores:
    """Return |P ∩ T| / |P ∪ T| of every class [K] from a confusion matrix [K, K]."""
    intersection = np.diagonal(voxels)
    return _ratio(intersection, voxels.sum(0) + voxels.sum(1) - intersection)


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> Scores:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 1.0)
