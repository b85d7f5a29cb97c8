"""Paired comparison of two methods on the same cases.

Legend: N cases, K − 1 foreground classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crkd_cli.metrics.summary import means, summarize

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """First minus second, over patients. NaN if undefined."""

    mean: float  # over the patients' mean differences
    low: float  # 95 % bootstrap interval over patients
    high: float
    n: int  # patients with a score of both methods
    pairs: int  # scores, of a case and class, that are defined for both methods
    left_out: int  # scores that are undefined for one of them
    p: float  # two-sided Wilcoxon signed-rank test: are the differences symmetric about 0?


def paired(first: Values, second: Values, groups: Sequence[str]) -> Difference:
    """Compare scores [N, K − 1] of the same cases in the same order.

    A class of a case counts if it is defined for both methods. The unit is the patient: the mean
    over classes, then over the patient's cases, because two scans of one heart are not
    independent.

    Args:
        first: Scores of one method.
        second: Scores of the other method.
        groups: The patient of every case.
    """
    differences = first - second
    pairs = int(np.count_nonzero(~np.isnan(differences)))
    left_out = differences.size - pairs
    cases = means(differences)
    owners = np.array(groups)
    patients = np.array([means(cases[owners == group]) for group in dict.fromkeys(groups)])
    patients = patients[~np.isnan(patients)]
    if not len(patients):
        return Difference(np.nan, np.nan, np.nan, 0, pairs, left_out, np.nan)
    (summary,), _ = summarize(patients[:, None])
    bounds = summary.mean, summary.low, summary.high
    return Difference(*bounds, len(patients), pairs, left_out, signed_rank(patients))


def signed_rank(differences: Values) -> float:
    """Return the two-sided p-value of the signed-rank test (Wilcoxon, 1945).

    Zero differences are left out; the p-value is 1 if all are zero.
    """
    from scipy.stats import wilcoxon

    nonzero = differences[differences != 0]
    return float(wilcoxon(nonzero).pvalue) if len(nonzero) else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust p-values for their number by the step-down rule of Holm (1979), in their order.

    Of m values in ascending order, the i-th becomes max over j ≤ i of min(1, (m − j + 1) pⱼ). NaN
    stays NaN and does not count.
    """
    values = np.array(ps, dtype=np.float64)
    family = np.flatnonzero(~np.isnan(values))
    ascending = family[np.argsort(values[family], kind="stable")]
    scaled = np.minimum(1.0, values[ascending] * np.arange(len(ascending), 0, -1))
    values[ascending] = np.maximum.accumulate(scaled) if len(ascending) else scaled
    return [float(value) for value in values]
