"""Absent classes: counts and rules by hand."""

import math

import numpy as np
import pytest

from crkd_cli.metrics.presence import Presence, count_absent, drop_absent_classes

NAN = math.nan
# Four cases, three classes: the first is always there, the second in one case, the third never.
TRUTH = np.array([[9, 0, 0], [9, 0, 0], [9, 5, 0], [1, 0, 0]])
PREDICTED = np.array([[0, 0, 0], [9, 7, 1], [9, 0, 0], [9, 2, 0]])


def test_false_positives_are_counted_among_the_absent_cases():
    assert count_absent(TRUTH, PREDICTED) == [Presence(0, 0), Presence(3, 2), Presence(4, 1)]
    assert [str(presence) for presence in count_absent(TRUTH, PREDICTED)] == ["–", "2/3", "1/4"]
    assert sum(count_absent(TRUTH, PREDICTED), Presence(0, 0)) == Presence(7, 3)


def test_a_class_in_no_case_has_no_scores():
    scores = np.array([[0.0, NAN, NAN], [0.9, 0.0, 0.0], [0.8, 0.0, NAN], [0.1, 0.0, NAN]])
    kept = drop_absent_classes(scores, TRUTH)
    assert np.array_equal(kept[:, :2], scores[:, :2], equal_nan=True)
    assert np.isnan(kept[:, 2]).all()
    assert scores[1, 2] == 0.0  # of a copy
    deep = drop_absent_classes(np.ones((4, 3, 2)), TRUTH)
    assert deep[0].tolist() == [[1, 1], [1, 1], pytest.approx([NAN, NAN], nan_ok=True)]
