"""Overlap of label maps, all classes from one pass. Two empty masks agree: 1; one empty mask: 0."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.uint8]
Scores = NDArray[np.float64]


def confusion(prediction: Labels, truth: Labels, classes: int) -> NDArray[np.int64]:
    """Voxels [K, K] of predicted class (row) and true class (column). Raises ValueError if the shapes differ."""
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    kind = np.dtype(
        np.uint8 if classes**2 <= 256 else np.int32
    )  # the smallest that numbers all pairs
    pairs = prediction.ravel().astype(kind) * kind.type(classes) + truth.ravel().astype(kind)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def dice(voxels: NDArray[np.int64]) -> Scores:
    """2 |P ∩ T| / (|P| + |T|) of every class [K] of a confusion matrix [K, K]."""
    both = np.diagonal(voxels)
    return _ratio(2 * both, voxels.sum(0) + voxels.sum(1))


def jaccard(voxels: NDArray[np.int64]) -> Scores:
    """|P ∩ T| / |P ∪ T| of every class [K] of a confusion matrix [K, K]."""
    both = np.diagonal(voxels)
    return _ratio(both, voxels.sum(0) + voxels.sum(1) - both)


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> Scores:
    return np.where(whole > 0, part / np.maximum(whole, 1), 1.0)
