"""From the scores of cases to what is reported: means, spread, 95 % intervals and what was undefined."""

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
    """One score over cases. NaN where it cannot be stated: the spread of one case, the mean of none."""

    mean: float
    sd: float  # over cases, n − 1
    low: float  # 95 % interval of the mean
    high: float
    n: int  # cases that the mean is of
    undefined: int  # cases left out: the score is undefined where both masks are empty


def summarize(
    values: Values, interval: Interval = "bootstrap", groups: Sequence[str] | None = None
) -> tuple[list[Summary], Summary]:
    """Scores [cases, classes], NaN = undefined, as one summary per class and the mean of the classes' means.

    bootstrap: percentiles over seeded resamples of the cases, which keep a case's classes together, and the cases of one of
    `groups` (patients, one per case): two scans of a heart say less than scans of two. t: mean ± Student's t over cases.
    The spread and n of the mean over classes are those of the cases' own means.
    """
    owners = _numbers(groups) if groups else np.arange(len(values))
    resampled = _resampled(values, owners)
    classes = [
        _summary(column, _mean(column), draws, interval, owners)
        for column, draws in zip(values.T, resampled.T, strict=True)
    ]
    cases = np.array([_mean(row) for row in values])
    overall = _mean(np.array([one.mean for one in classes]))
    return classes, _summary(cases, overall, means(resampled), interval, owners)


def means(values: Values) -> Values:
    """Means [...] over the last axis of `values` [..., n], of what is defined there; NaN where nothing is."""
    defined = ~np.isnan(values)
    counts = defined.sum(-1)
    return np.where(
        counts > 0, np.where(defined, values, 0.0).sum(-1) / np.maximum(counts, 1), np.nan
    )


def _numbers(groups: Sequence[str]) -> NDArray[np.int64]:
    """The number [cases] of every case's group, in the order in which groups come."""
    order = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return np.array([order[group] for group in groups])


def _summary(
    values: Values, mean: float, resampled: Values, interval: Interval, owners: NDArray[np.int64]
) -> Summary:
    kept = ~np.isnan(values)
    defined = values[kept]
    n = len(defined)
    sd = float(defined.std(ddof=1)) if n > 1 else math.nan
    resampled = resampled[~np.isnan(resampled)]
    if n < 2 or (interval == "bootstrap" and len(set(owners[kept])) < 2):
        low = high = math.nan
    elif interval == "t":
        from scipy.special import stdtrit

        half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
        low, high = mean - half, mean + half
    else:
        low, high = (float(bound) for bound in np.percentile(resampled, (2.5, 97.5)))
    return Summary(mean, sd, low, high, n, len(values) - n)


def _resampled(values: Values, owners: NDArray[np.int64]) -> Values:
    """Means [draws, classes] of resampled groups with all their cases; a draw without a defined case is NaN."""
    groups = int(owners.max()) + 1
    times = (
        np.random.default_rng(SEED)
        .multinomial(groups, np.full(groups, 1 / groups), size=DRAWS)
        .astype(np.float64)
    )
    times = times[:, owners]  # a case comes as often as its group
    defined = ~np.isnan(values)
    sums, counts = times @ np.where(defined, values, 0.0), times @ defined.astype(np.float64)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _mean(values: Values) -> float:
    return float(means(values))
