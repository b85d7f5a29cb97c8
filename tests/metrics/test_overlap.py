"""Overlap against hand-counted masks and medpy."""

import numpy as np
import pytest
from medpy.metric import binary

from crkd_cli.metrics.overlap import confusion, dice, jaccard


def test_hand_counted():
    prediction = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)
    truth = np.array([[0, 1, 2], [2, 2, 1]], np.uint8)
    voxels = confusion(prediction, truth, 4)
    assert voxels.tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 0, 0]]
    assert dice(voxels).tolist() == [2 / 3, 2 / 4, 4 / 5, 1.0]  # class 3 is empty in both
    assert jaccard(voxels).tolist() == [1 / 2, 1 / 3, 2 / 3, 1.0]


def test_agrees_with_medpy(dims, rng):
    for classes in (2, 4, 40):
        shape = (23, 17, 9)[:dims]
        prediction, truth = (rng.integers(0, classes, shape).astype(np.uint8) for _ in range(2))
        voxels = confusion(prediction, truth, classes)
        for k in range(classes):
            assert dice(voxels)[k] == pytest.approx(
                binary.dc(prediction == k, truth == k), abs=1e-12
            )
            assert jaccard(voxels)[k] == pytest.approx(
                binary.jc(prediction == k, truth == k), abs=1e-12
            )


def test_empty_masks(dims):
    nothing, one = np.zeros((5,) * dims, np.uint8), np.zeros((5,) * dims, np.uint8)
    one[(2,) * dims] = 1
    for prediction, truth, expected in (
        (nothing, nothing, 1),
        (nothing, one, 0),
        (one, nothing, 0),
        (one, one, 1),
    ):
        voxels = confusion(prediction, truth, 2)
        assert dice(voxels)[1] == jaccard(voxels)[1] == expected


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        confusion(np.zeros((2, 6), np.uint8), np.zeros((3, 4), np.uint8), 2)
