"""Paired tests: by hand from the definitions, and against scipy on the raw differences."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from crkd_cli.metrics.paired import holm, paired, signed_rank

NAN = math.nan


@pytest.mark.parametrize(
    ("ps", "adjusted"),
    [
        # 3 × 0.01; max(0.03, 2 × 0.03); max(0.06, 1 × 0.04)
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        # 4 × 0.3 exceeds 1, and so do all that follow.
        ([0.3, 0.5, 0.9, 0.4], [1.0, 1.0, 1.0, 1.0]),
        ([0.02], [0.02]),
        ([0.04, NAN, 0.01], [0.04, NAN, 0.02]),  # a family of two
        ([], []),
    ],
)
def test_holm_by_hand(ps, adjusted):
    assert holm(ps) == pytest.approx(adjusted, nan_ok=True)


def test_signed_rank_by_counting_signs():
    """Under the null hypothesis all 2⁵ signs of the ranks are equally likely."""
    # Ranks 4, −1, 3, 5, 2: the sum of the negative ones is 1.
    differences = np.array([0.4, -0.1, 0.3, 0.5, 0.2])
    sums = [np.dot(range(1, 6), signs) for signs in itertools.product((0, 1), repeat=5)]
    assert signed_rank(differences) == pytest.approx(2 * sum(total <= 1 for total in sums) / 32)


def test_zero_differences_are_left_out():
    assert signed_rank(np.array([0.0, 0.4, -0.1, 0.3])) == signed_rank(np.array([0.4, -0.1, 0.3]))
    assert signed_rank(np.zeros(4)) == 1.0


def test_one_class_and_one_case_per_patient_is_scipys(rng):
    first, second = rng.normal(0.8, 0.1, (2, 25, 1))
    difference = paired(first, second, [f"p{number}" for number in range(25)])
    assert difference.p == pytest.approx(stats.wilcoxon(first[:, 0], second[:, 0]).pvalue)
    assert difference.mean == pytest.approx((first - second).mean())
    assert difference.low < difference.mean < difference.high
    assert difference.n == 25


def test_a_patient_counts_once(rng):
    """Two scans of every heart with equal scores give the same result as one scan."""
    first, second = rng.normal(0.8, 0.1, (2, 12, 3))
    groups = [f"p{number}" for number in range(12)]
    once = paired(first, second, groups)
    twice = paired(
        np.repeat(first, 2, axis=0), np.repeat(second, 2, axis=0), np.repeat(groups, 2).tolist()
    )
    assert (twice.n, twice.p) == (12, once.p)
    assert (twice.mean, twice.low, twice.high) == pytest.approx((once.mean, once.low, once.high))


def test_per_patient_means_by_hand():
    first = np.array([[0.9, 0.7], [0.5, 0.5], [0.8, NAN], [NAN, 0.3]])
    second = np.array([[0.8, 0.4], [0.5, 0.3], [0.4, 0.2], [0.1, NAN]])
    # a: cases 0.2 and 0.1; b: class 1 only, 0.4; c: no class with both scores
    difference = paired(first, second, ["a", "a", "b", "c"])
    assert (difference.n, difference.pairs, difference.left_out) == (2, 5, 3)
    assert difference.mean == pytest.approx((0.15 + 0.4) / 2)
    assert difference.p == 0.5  # two of the four signs are as extreme


def test_no_common_scores():
    difference = paired(np.array([[NAN], [0.5]]), np.array([[0.5], [NAN]]), ["a", "b"])
    assert (difference.n, difference.pairs, difference.left_out) == (0, 0, 2)
    values = (difference.mean, difference.low, difference.high, difference.p)
    assert all(math.isnan(value) for value in values)
