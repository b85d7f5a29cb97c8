"""Several runs on the same test cases: means over seeds, intervals over patients, and tests between methods.

Legend: R runs (seeds) of a method, N cases, K − 1 foreground classes, M metrics.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.errors import UsageError
from crkd_cli.evaluation.literature import PublishedRow, published_rows
from crkd_cli.evaluation.results import Evaluation
from crkd_cli.metrics.paired import Difference, holm, paired
from crkd_cli.metrics.summary import means, summarize

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreSummary:
    """One metric of a method. NaN where it cannot be stated."""

    mean: float  # over the runs' means over cases
    sd: float  # of the runs' means, n − 1: NaN for one run
    low: float  # 95 % interval of the mean over patients, the runs taken as they are
    high: float
    undefined: int  # scores left out, of all runs and classes


@dataclass(frozen=True)
class MethodResult:
    """A method: the runs that differ by their seeds only."""

    name: str
    runs: list[Evaluation]
    scores: Scores  # [R, N, K − 1, M]
    classes: dict[str, list[ScoreSummary]]  # of every foreground class, one per metric
    mean: list[ScoreSummary]  # over the classes, one per metric


@dataclass(frozen=True)
class PairedTest:
    """Two methods under one metric, the mean over classes."""

    metric: str
    first: str
    second: str
    difference: Difference  # first minus second
    p_holm: float  # adjusted for the pairs of this metric


@dataclass(frozen=True)
class Comparison:
    """All entries score the same cases in the same order."""

    entries: list[MethodResult]
    tests: list[PairedTest]
    published: list[PublishedRow]

    @property
    def one(self) -> Evaluation:
        """What holds for all: data set, protocol, cases, classes, metrics."""
        return self.entries[0].runs[0]

    @property
    def unit(self) -> str:
        """What the intervals and tests are over."""
        return "cases" if len(set(self.one.groups)) == len(self.one.groups) else "patients"

    def explanation(self) -> list[str]:
        """What the numbers are, in sentences."""
        return [
            "Mean ± SD: over the runs of a method, which differ by their seed only; a run's mean is over cases, then classes.",
            f"95 % CI: percentile bootstrap over {self.unit}, of the mean over the runs as they are.",
            f"p: two-sided Wilcoxon signed-rank test of paired differences, one per {self.unit.removesuffix('s')}: the mean over "
            "classes of scores averaged over runs; what is undefined for either method is left out.",
            "p (Holm): adjusted over all pairs of methods under the same score.",
        ]

    def unequal(self) -> list[str]:
        """What else the methods differ in than the method and its own settings, in sentences."""
        found: dict[str, dict[str, list[str]]] = {}  # by setting and value: the methods
        for entry in self.entries:
            for name, value in entry.runs[0].facts.circumstances().items():
                found.setdefault(name, {}).setdefault(value, []).append(entry.name)
        several = {
            name: [f"{value} ({', '.join(who)})" for value, who in values.items()]
            for name, values in found.items()
        }
        return [
            f"Not the same for all: {name} is {', '.join(values)}."
            for name, values in several.items()
            if len(values) > 1
        ]

    def tree(self) -> dict[str, Any]:
        """As plain dicts and lists for JSON; None for what is undefined."""
        one = self.one
        shared = {
            key: getattr(one.facts, key)
            for key in ("protocol", "dataset", "part", "labeled", "split")
        }
        return {
            **shared,
            "cases": len(one.cases),
            "patients": len(set(one.groups)),
            "explanation": self.explanation(),
            "unequal": self.unequal(),
            "methods": [self._method(entry) for entry in self.entries],
            "tests": [
                {
                    "metric": t.metric,
                    "first": t.first,
                    "second": t.second,
                    **_plain(asdict(t.difference) | {"p_holm": t.p_holm}),
                }
                for t in self.tests
            ],
            "published": [
                {
                    "method": row.method,
                    "protocol": row.protocol,
                    "source": row.source,
                    **row.scores(),
                }
                for row in self.published
            ],
        }

    def _method(self, entry: MethodResult) -> dict[str, Any]:
        def named(scores: list[ScoreSummary]) -> dict[str, Any]:
            return {
                metric: _plain(asdict(score))
                for metric, score in zip(self.one.metrics, scores, strict=True)
            }

        runs = [
            {
                "evaluation": str(run.folder),
                **{key: getattr(run.facts, key) for key in ("seed", "checkpoint", "step")},
            }
            for run in entry.runs
        ]
        classes = {name: named(scores) for name, scores in entry.classes.items()}
        return {"method": entry.name, "runs": runs, "classes": classes, "mean": named(entry.mean)}


def compare_runs(runs: Sequence[Evaluation]) -> Comparison:
    """Puts runs of one method together and compares the methods, in the order given.

    Raises UsageError where the runs cannot be compared: it names what differs, or what is given twice.
    """
    for other in runs[1:]:
        _comparable(runs[0], other)
    members: dict[str, list[Evaluation]] = {}
    for run in runs:
        members.setdefault(run.facts.settings(), []).append(run)
    names = _names(list(members.values()))
    entries = [
        _entry(name, group, runs[0]) for name, group in zip(names, members.values(), strict=True)
    ]
    tests = [test for m in range(len(runs[0].metrics)) for test in _tests(entries, m)]
    facts = runs[0].facts
    return Comparison(entries, tests, published_rows(facts.dataset, facts.labeled))


def _comparable(one: Evaluation, other: Evaluation) -> None:
    """Raises UsageError, with all that differs, unless both score the same cases in the same way."""
    pairs = {
        "data set": (one.facts.dataset, other.facts.dataset),
        "protocol": (one.facts.protocol, other.facts.protocol),
        "part": (one.facts.part, other.facts.part),
        "labeled cases": (one.facts.labeled, other.facts.labeled),
        "split": (one.facts.split, other.facts.split),
        "classes": (", ".join(one.classes), ", ".join(other.classes)),
        "scores": (", ".join(one.metrics), ", ".join(other.metrics)),
    }
    differ = [f"{what} {a} and {b}" for what, (a, b) in pairs.items() if a != b]
    lacking, extra = (
        len(set(a) - set(b)) for a, b in ((one.cases, other.cases), (other.cases, one.cases))
    )
    if lacking or extra:
        differ.append(f"test cases ({lacking} are only in the first, {extra} only in the second)")
    elif dict(zip(one.cases, one.groups, strict=True)) != dict(
        zip(other.cases, other.groups, strict=True)
    ):
        differ.append("the patients that the cases belong to")
    elif one.facts.truth != other.facts.truth:
        differ.append("the labels of the test cases")
    if differ:
        raise UsageError(
            f"{one.folder} and {other.folder} cannot be compared; they differ in {'; '.join(differ)}"
        )


def _names(groups: list[list[Evaluation]]) -> list[str]:
    """A name for every entry: the method; where several have it, with the run folder's name less its seed."""
    methods = [runs[0].facts.method for runs in groups]
    stems = [re.sub(r"-seed\d+$", "", runs[0].run.resolve().name) for runs in groups]
    names = [
        method if methods.count(method) == 1 else f"{method} ({stem})"
        for method, stem in zip(methods, stems, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{runs[0].facts.method} ({runs[0].run})"
        for name, runs in zip(names, groups, strict=True)
    ]


def _entry(name: str, runs: list[Evaluation], one: Evaluation) -> MethodResult:
    """Statistics of the runs of one method, their cases in the order of `one`."""
    by_seed: dict[int, Evaluation] = {}
    scored = {Path(run.facts.checkpoint).name: run.folder for run in runs}
    if {"best.pth", "last.pth"} <= scored.keys():
        raise UsageError(
            f"{scored['best.pth']} was scored at best.pth and {scored['last.pth']} at last.pth; evaluate {name}'s runs at one"
        )
    for run in runs:
        if (twin := by_seed.setdefault(run.facts.seed, run)) is not run:
            raise UsageError(
                f"{twin.folder} and {run.folder} have the same method, settings and seed {run.facts.seed}; give one of them"
            )
    scores = np.stack([run.scores[[run.cases.index(case) for case in one.cases]] for run in runs])
    columns = range(scores.shape[3])
    classes = {
        c: [_score(scores[:, :, [k], m], one.groups) for m in columns]
        for k, c in enumerate(one.classes)
    }
    return MethodResult(
        name, runs, scores, classes, [_score(scores[..., m], one.groups) for m in columns]
    )


def _score(scores: Scores, groups: list[str]) -> ScoreSummary:
    """One metric of some classes: [R, N, classes]. Resampling takes all runs' scores of a patient together."""
    _, overall = summarize(np.concatenate(list(scores), axis=1), groups=groups)
    of_runs = means(means(scores.swapaxes(1, 2)))
    sd = float(of_runs.std(ddof=1)) if len(scores) > 1 else nan
    return ScoreSummary(overall.mean, sd, overall.low, overall.high, int(np.isnan(scores).sum()))


def _tests(entries: list[MethodResult], m: int) -> list[PairedTest]:
    """All pairs of methods under metric number `m`."""
    pairs = list(combinations(entries, 2))
    groups, metric = entries[0].runs[0].groups, entries[0].runs[0].metrics[m]
    found = [
        paired(mean_over_runs(a.scores[..., m]), mean_over_runs(b.scores[..., m]), groups)
        for a, b in pairs
    ]
    adjusted = holm([difference.p for difference in found])
    return [
        PairedTest(metric, a.name, b.name, difference, p)
        for (a, b), difference, p in zip(pairs, found, adjusted, strict=True)
    ]


def mean_over_runs(scores: Scores) -> Scores:
    """Scores [R, N, …] averaged over the runs in which they are defined: [N, …]."""
    return means(np.moveaxis(scores, 0, -1))


def _plain(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and isnan(value) else value
        for key, value in tree.items()
    }
