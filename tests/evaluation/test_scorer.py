"""The scores of one case: empty masks and ignored pixels, by hand."""

import math

import msgspec
import numpy as np
import pytest

from crkd_cli.data.store import CaseInfo
from crkd_cli.evaluation import paper
from crkd_cli.evaluation.scorer import Scorer

NAN = math.nan


def case_of(shape, spacing=None) -> CaseInfo:
    return CaseInfo(
        id="x",
        group="x",
        shape=shape,
        spacing_mm=spacing,
        source="x",
        sha256="0",
        label_sha256="0",
        intensity=(),
    )


@pytest.mark.parametrize(
    ("prediction", "truth", "dice", "distance", "nsd"),
    [
        ([], [], NAN, NAN, NAN),
        ([5], [], 0, "diagonal", 0),
        ([], [5], 0, "diagonal", 0),
        ([5], [5], 1, 0, 1),
    ],
    ids=["both empty", "no truth", "no prediction", "equal"],
)
def test_strict_rules_for_empty_masks(dims, prediction, truth, dice, distance, nsd):
    shape, spacing = (8, 9, 7)[:dims], (3.0, 1.0, 2.0)[:dims]
    case = case_of(shape, spacing)
    masks = []
    for voxels in (prediction, truth):
        mask = np.zeros(shape, np.uint8)
        for at in voxels:
            mask[(at,) * dims] = 1
        masks.append(mask)
    result = Scorer("folder", 2, "strict", [case])(*masks, case)
    diagonal = math.sqrt(sum((side * step) ** 2 for side, step in zip(shape, spacing, strict=True)))
    distance = diagonal if distance == "diagonal" else distance
    expected = [dice, dice, distance, distance, distance, nsd]
    assert result.scores[0].tolist() == pytest.approx(expected, nan_ok=True)
    assert (result.truth.tolist(), result.predicted.tolist()) == ([len(truth)], [len(prediction)])


def test_ignored_pixels_count_in_no_score():
    """Two classes in a row of pixels, and 3 as the number of the ignored pixels.

    Without the ignored pixels, class 1 is at 2–4 and predicted at 3–5, and class 2 is nowhere.
    """
    truth = np.array([[0, 0, 1, 1, 1, 0, 0, 3, 3, 3]], np.uint8)
    labels = np.array([[0, 0, 0, 1, 1, 1, 0, 1, 2, 2]], np.uint8)
    case = case_of(truth.shape)
    score = Scorer("folder", 3, "strict", [case])
    result = score(labels, truth, case)
    # Overlap 2 of 3 and 3 pixels; all pixels of a row are surface, at distances 0, 0 and 1.
    overlap = [2 * 2 / 6, 2 / 4]
    distances = [np.percentile([0, 0, 1], 95), 2 / 6, 1 / 3, 1.0]
    assert result.scores[0].tolist() == pytest.approx([*overlap, *distances])
    assert result.scores[1].tolist() == pytest.approx([NAN] * 6, nan_ok=True)
    assert (result.truth.tolist(), result.predicted.tolist()) == ([3, 0], [3, 0])

    inside = score(np.where(truth == 3, 0, labels), np.where(truth == 3, 0, truth), case)
    for array, expected in zip(result, inside, strict=True):
        assert np.array_equal(array, expected, equal_nan=True)

    everywhere = score(labels, np.full_like(truth, 3), case)
    assert np.isnan(everywhere.scores).all()
    assert not np.any([everywhere.truth, everywhere.predicted])


def test_distances_are_those_of_the_native_label():
    """A voxel is missed at 2 voxels of 1.5 mm, which are stored at 3 mm; or that is unknown."""
    truth, labels = np.zeros((2, 1, 9, 3), np.uint8)
    truth[0, 2, 1] = labels[0, 4, 1] = 1
    stored = msgspec.structs.replace(case_of((1, 5, 3), (1.0, 2.7, 1.0)), native_shape=truth.shape)
    case = msgspec.structs.replace(stored, native_spacing_mm=(1.0, 1.5, 1.0))
    for info, metric, distance in ((case, "hd95_mm", 3.0), (stored, "hd95_px", 2.0)):
        scorer = Scorer("folder", 2, "strict", [info])
        column = scorer.metrics.index(metric)
        assert scorer(labels, truth, info).scores[0, column] == pytest.approx(distance)


def test_the_paper_protocol_scores_every_class(rng):
    labels, truth = (rng.integers(0, 3, (6, 7, 8)).astype(np.uint8) for _ in range(2))
    truth[truth == 2] = 0
    case = case_of(truth.shape)
    result = Scorer("acdc", 3, "paper", [case])(labels, truth, case)
    expected = [paper.scores(labels == k, truth == k, "acdc") for k in (1, 2)]
    assert result.scores.tolist() == np.stack(expected).tolist()
    assert result.scores[1].tolist() == [0, 0, 0, 0]
    assert result.truth.tolist() == [np.sum(truth == 1), 0]


def test_many_classes_are_scored_with_large_class_numbers():
    """Class 300 of 301, and the ignored pixels are 302."""
    truth = np.array([[300, 300, 302, 0]], np.int16)
    labels = np.array([[300, 0, 300, 0]], np.int16)
    case = case_of(truth.shape)
    result = Scorer("folder", 302, "strict", [case])(labels, truth, case)
    assert result.scores[299, :2].tolist() == [2 / 3, 1 / 2]
    assert np.isnan(np.delete(result.scores, 299, axis=0)).all()
