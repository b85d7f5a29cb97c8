"""Overlap against hand-counted masks and medpy."""

import math

import numpy as np
import pytest
from medpy.metric import binary

from crkd_cli.metrics import overlap
from crkd_cli.metrics.overlap import confusion, dice, jaccard


@pytest.mark.parametrize("counted_at_once", [2**22, 4])
def test_hand_counted(monkeypatch, counted_at_once):
    monkeypatch.setattr(overlap, "COUNTED_AT_ONCE", counted_at_once)
    prediction = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)
    truth = np.array([[0, 1, 2], [2, 2, 1]], np.uint8)
    voxels = confusion(prediction, truth, 4)
    assert voxels.tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 0, 0]]
    nan = pytest.approx(math.nan, nan_ok=True)  # class 3 is empty in both
    assert dice(voxels).tolist() == [2 / 3, 2 / 4, 4 / 5, nan]
    assert jaccard(voxels).tolist() == [1 / 2, 1 / 3, 2 / 3, nan]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_ignored_voxels_count_nowhere(dtype):
    """Class number 2, of two classes: one hit, one false positive and one miss are ignored."""
    prediction = np.array([[1, 1, 1, 0], [0, 1, 1, 0]], dtype)
    truth = np.array([[1, 0, 1, 1], [0, 2, 2, 2]], dtype)
    assert confusion(prediction, truth, 2).tolist() == [[1, 1], [1, 2]]
    assert dice(confusion(prediction, truth, 2))[1] == 2 * 2 / (3 + 3)
    everything = np.full_like(truth, 2)
    assert confusion(prediction, everything, 2).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(ValueError, match="contains class 3, but there are 2 classes"):
        confusion(prediction, np.full_like(truth, 3), 2)


@pytest.mark.parametrize("classes", [15, 16, 300])
def test_the_highest_class_of_many_is_counted(classes):
    """Around the limits of the types that number the pairs of classes."""
    truth = np.array([classes - 1, classes - 1, classes, 0], np.int16)
    prediction = np.array([classes - 1, 0, classes - 1, classes - 1], np.int16)
    voxels = confusion(prediction, truth, classes)
    expected = np.zeros((classes, classes), int)
    expected[-1, -1] = expected[0, -1] = expected[-1, 0] = 1
    assert np.array_equal(voxels, expected)


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
        (nothing, nothing, math.nan),
        (nothing, one, 0),
        (one, nothing, 0),
        (one, one, 1),
    ):
        voxels = confusion(prediction, truth, 2)
        assert [dice(voxels)[1], jaccard(voxels)[1]] == pytest.approx([expected] * 2, nan_ok=True)


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        confusion(np.zeros((2, 6), np.uint8), np.zeros((3, 4), np.uint8), 2)
