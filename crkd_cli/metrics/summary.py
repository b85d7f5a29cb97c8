"""Summaries of scores over cases: means, spread, 95 % intervals, and how many were undefined."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Interval = Literal["bootstrap", "t"]
DRAWS = 10_000
SEED = 0


@dataclass(frozen=True)
class Summary:
    """One score over cases. NaN if undefined: the spread of one case, the mean of none."""

    mean: float
    sd: float  # over cases, n − 1
    low: float  # 95 % interval of the mean
    high: float
    n: int  # cases with a defined score
    undefined: int  # cases left out, for example because both masks are empty


def summarize(
    values: Values, interval: Interval = "bootstrap", groups: Sequence[str] | None = None
) -> tuple[list[Summary], Summary]:
    """Summarize scores [cases, classes], with NaN if undefined, over cases.

    Returns one summary per class, and that of the mean over the classes' means. The spread and n
    of the latter are those of the cases' means over classes.

    Args:
        values: Scores [cases, classes].
        interval: bootstrap: percentiles over seeded resamples of the groups, with all classes of a
            case together. t: mean ± Student's t over cases.
        groups: The patient of every case. Two scans of one patient carry less information than
            scans of two, so patients are resampled. None: every case is its own group.
    """
    owners = _group_numbers(groups) if groups else np.arange(len(values))
    draws = _resampled_means(values, owners)
    classes = []
    for column, class_draws in zip(values.T, draws.T, strict=True):
        classes.append(_summary(column, _mean(column), class_draws, interval, owners))
    case_means = np.array([_mean(row) for row in values])
    overall = _mean(np.array([summary.mean for summary in classes]))
    return classes, _summary(case_means, overall, means(draws), interval, owners)


def means(values: Values, axis: int = -1) -> Values:
    """Average `values` over an axis, by default the last, without NaN; NaN if all are NaN."""
    defined = ~np.isnan(values)
    counts = defined.sum(axis)
    sums = np.where(defined, values, 0.0).sum(axis)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _group_numbers(groups: Sequence[str]) -> NDArray[np.int64]:
    """Return the number [cases] of every case's group, counted in order of appearance."""
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups])


def _summary(
    values: Values, mean: float, draws: Values, interval: Interval, owners: NDArray[np.int64]
) -> Summary:
    """Summarize `values` [cases] with their `mean` and resampled means `draws`."""
    is_defined = ~np.isnan(values)
    defined = values[is_defined]
    n = len(defined)
    sd = float(defined.std(ddof=1)) if n > 1 else math.nan
    draws = draws[~np.isnan(draws)]
    if n < 2 or (interval == "bootstrap" and len(set(owners[is_defined])) < 2):
        low = high = math.nan
    elif interval == "t":
        from scipy.special import stdtrit

        half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
        low, high = mean - half, mean + half
    else:
        low, high = (float(bound) for bound in np.percentile(draws, (2.5, 97.5)))
    return Summary(mean, sd, low, high, n, len(values) - n)


def _resampled_means(values: Values, owners: NDArray[np.int64]) -> Values:
    """Return means [draws, classes] of resampled groups with all their cases.

    A draw without a defined case is NaN.
    """
    groups = int(owners.max()) + 1
    generator = np.random.default_rng(SEED)
    counts = generator.multinomial(groups, np.full(groups, 1 / groups), size=DRAWS)
    times = counts.astype(np.float64)[:, owners]  # a case is drawn as often as its group
    defined = ~np.isnan(values)
    sums = times @ np.where(defined, values, 0.0)
    totals = times @ defined.astype(np.float64)
    return np.where(totals > 0, sums / np.maximum(totals, 1), np.nan)


def _mean(values: Values) -> float:
    return float(means(values))
