"""Two methods on the same cases: is the difference more than chance?

Legend: N cases, K − 1 foreground classes, G groups (patients).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crkd_cli.metrics.summary import means, summarize

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """First minus second, over patients. NaN where there is nothing to say."""

    mean: float  # over patients, of their own mean differences
    low: float  # 95 % bootstrap interval over patients
    high: float
    n: int  # patients that have a score of both
    p: float  # two-sided Wilcoxon signed-rank test: the differences lie symmetrically about 0


def paired(first: Values, second: Values, groups: Sequence[str]) -> Difference:
    """Compares scores [N, K − 1] of the same cases in the same order; `groups` names every case's patient.

    A class of a case counts where it is defined for both. The pairing unit is the patient: the mean over classes, then over
    the patient's cases, because two scans of one heart are no independent witnesses.
    """
    cases = means(first - second)
    of = np.array(groups)
    patients = np.array([means(cases[of == group]) for group in dict.fromkeys(groups)])
    patients = patients[~np.isnan(patients)]
    if not len(patients):
        return Difference(np.nan, np.nan, np.nan, 0, np.nan)
    (summary,), _ = summarize(patients[:, None])
    return Difference(summary.mean, summary.low, summary.high, len(patients), signed_rank(patients))


def signed_rank(differences: Values) -> float:
    """The two-sided p-value of Wilcoxon's signed-rank test (Wilcoxon, 1945). Zero differences are left out; 1 if all are zero."""
    from scipy.stats import wilcoxon

    moved = differences[differences != 0]
    return float(wilcoxon(moved).pvalue) if len(moved) else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down rule (Holm, 1979), in their order; NaN is no member of the family.

    Of m values in rising order the i-th becomes max over j ≤ i of min(1, (m − j + 1) pⱼ).
    """
    values = np.array(ps, dtype=np.float64)
    family = np.flatnonzero(~np.isnan(values))
    rising = family[np.argsort(values[family], kind="stable")]
    scaled = np.minimum(1.0, values[rising] * np.arange(len(rising), 0, -1))
    values[rising] = np.maximum.accumulate(scaled) if len(rising) else scaled
    return [float(value) for value in values]
