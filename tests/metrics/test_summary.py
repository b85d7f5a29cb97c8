"""Means by hand, intervals against scipy, and what is undefined."""

import math

import numpy as np
import pytest
from scipy import stats

from crkd_cli.metrics.summary import means, summarize

NAN = math.nan


def test_means_by_hand():
    classes, mean = summarize(np.array([[0.2, 1.0], [0.4, NAN], [0.9, 0.6]]))
    assert [summary.mean for summary in classes] == pytest.approx([0.5, 0.8])
    assert [summary.n for summary in classes] == [3, 2]
    assert [summary.undefined for summary in classes] == [0, 1]
    assert classes[0].sd == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 2))
    assert mean.mean == pytest.approx(0.65)  # of the classes' means, not of all values
    assert mean.n == 3
    assert mean.sd == pytest.approx(np.std([0.6, 0.4, 0.75], ddof=1))


def test_means_of_defined_values_are_numpys(rng):
    """Bit for bit where all are defined, over either axis."""
    values = rng.random((30, 5))
    assert means(values).tolist() == values.mean(-1).tolist()
    assert means(values, axis=0).tolist() == values.mean(0).tolist()
    values[:, 1], values[3, 2] = NAN, NAN
    expected = [*values[:, 0:1].mean(0), NAN, np.delete(values[:, 2], 3).mean()]
    assert means(values, axis=0)[:3] == pytest.approx(expected, nan_ok=True)


def test_bootstrap_agrees_with_scipy(rng):
    values = rng.normal(0.7, 0.1, 30)
    (summary,), mean = summarize(values[:, None])
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, random_state=rng
    )
    assert summary.low == pytest.approx(expected.confidence_interval.low, abs=2e-3)
    assert summary.high == pytest.approx(expected.confidence_interval.high, abs=2e-3)
    assert (mean.low, mean.high) == pytest.approx((summary.low, summary.high))


def test_t_interval_is_scipys(rng):
    values = rng.normal(0.7, 0.1, 12)
    (summary,), _ = summarize(values[:, None], "t")
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert (summary.low, summary.high) == pytest.approx((low, high))


def test_the_same_values_give_the_same_interval(rng):
    values = rng.random((9, 3))
    assert summarize(values) == summarize(values.copy())


def test_undefined_everywhere():
    classes, mean = summarize(np.array([[NAN, 0.5], [NAN, 0.7]]))
    assert math.isnan(classes[0].mean)
    assert (classes[0].n, classes[0].undefined) == (0, 2)
    assert mean.mean == pytest.approx(0.6)


def test_one_case_has_no_spread():
    (summary,), _ = summarize(np.array([[0.5]]))
    assert summary.mean == 0.5
    assert all(math.isnan(value) for value in (summary.sd, summary.low, summary.high))


def test_one_case_per_patient_is_a_bootstrap_over_cases(rng):
    values = rng.random((9, 3))
    assert summarize(values, groups=[f"p{number}" for number in range(9)]) == summarize(values)


def test_a_second_scan_with_the_same_scores_adds_no_information(rng):
    values = rng.random((12, 2))
    groups = [f"p{number}" for number in range(12)]
    once, _ = summarize(values)
    twice, _ = summarize(np.repeat(values, 2, axis=0), groups=np.repeat(groups, 2).tolist())
    for doubled, single in zip(twice, once, strict=True):
        assert (doubled.low, doubled.high) == pytest.approx((single.low, single.high))
    narrow, _ = summarize(np.repeat(values, 2, axis=0))
    for by_case, by_patient in zip(narrow, once, strict=True):
        assert by_case.high - by_case.low < 0.8 * (by_patient.high - by_patient.low)


def test_bootstrap_over_patients_agrees_with_scipy(rng):
    counts = rng.integers(1, 4, 25)
    groups = np.repeat(np.arange(25), counts)
    values = rng.normal(0.7, 0.1, 25)[groups] + rng.normal(0, 0.05, len(groups))
    (summary,), _ = summarize(values[:, None], groups=[f"p{group}" for group in groups])
    expected = stats.bootstrap(
        (np.bincount(groups, values), counts),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        random_state=rng,
    )
    assert summary.low == pytest.approx(expected.confidence_interval.low, abs=2e-3)
    assert summary.high == pytest.approx(expected.confidence_interval.high, abs=2e-3)


def test_one_patient_has_no_interval():
    (summary,), _ = summarize(np.array([[0.5], [0.7]]), groups=["p", "p"])
    assert summary.sd == pytest.approx(0.1 * math.sqrt(2))
    assert math.isnan(summary.low)
    assert math.isnan(summary.high)
