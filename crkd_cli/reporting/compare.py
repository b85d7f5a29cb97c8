"""Compare runs on the same test cases: means over seeds, intervals over patients, paired tests.

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
from crkd_cli.metrics.presence import Presence
from crkd_cli.metrics.summary import means, summarize

Scores = NDArray[np.float64]
FOLDS = (
    "Cross-validation: each case is scored by the one of {} models that held it out. The models "
    "share training cases, so that they count as one run and not as repetitions."
)


@dataclass(frozen=True)
class ScoreSummary:
    """One metric of a method. NaN where undefined."""

    mean: float  # over the runs' means over cases
    sd: float  # of the runs' means, n − 1: NaN for one run
    low: float  # 95 % interval of the mean over patients, given these runs
    high: float
    n: int  # scores that count, of all runs and classes
    undefined: int  # scores left out


@dataclass(frozen=True)
class MethodResult:
    """A method with a number of labeled patients: the runs that differ only in their seed."""

    name: str
    runs: list[Evaluation]
    scores: Scores  # [R, N, K − 1, M]
    classes: dict[str, list[ScoreSummary]]  # per foreground class, one per metric
    mean: list[ScoreSummary]  # over the classes, one per metric
    presence: dict[str, Presence]  # of every class, summed over the runs

    @property
    def all_presence(self) -> Presence:
        """The counts of all classes together."""
        return sum(self.presence.values(), Presence(0, 0))

    @property
    def labeled(self) -> str:
        """With how many labeled patients the runs were trained."""
        return self.runs[0].facts.labeled_patients


@dataclass(frozen=True)
class PairedTest:
    """The comparison of two methods under one metric, averaged over the classes."""

    metric: str
    first: str
    second: str
    difference: Difference  # first minus second
    p_holm: float  # adjusted for the pairs of this metric


@dataclass(frozen=True)
class Comparison:
    """Methods that score the same cases in the same order."""

    entries: list[MethodResult]
    tests: list[PairedTest]
    published: list[PublishedRow]

    @property
    def common(self) -> Evaluation:
        """A run whose dataset, protocol, cases, classes and metrics are those of all runs."""
        return self.entries[0].runs[0]

    @property
    def labeled(self) -> str:
        """With how many labeled patients the methods were trained: 4, or 4 and 9."""
        return " and ".join(dict.fromkeys(entry.labeled for entry in self.entries))

    @property
    def unit(self) -> str:
        """What is resampled and tested: cases, or patients if some have several cases."""
        groups = self.common.groups
        return "cases" if len(set(groups)) == len(groups) else "patients"

    def explanation(self) -> list[str]:
        """Explain in sentences how the numbers were computed."""
        folds = len(self.common.facts.folds)
        return [
            *([FOLDS.format(folds)] if folds else []),
            "Mean ± SD: over the runs of a method, which differ only in their seed; a run's mean "
            "is over cases, then over classes.",
            f"95 % CI: percentile bootstrap over {self.unit}; the runs are not resampled.",
            "p: two-sided Wilcoxon signed-rank test of paired differences, one per "
            f"{self.unit.removesuffix('s')}: the mean over classes of scores averaged over runs; "
            "scores undefined for either method are left out.",
            "p (Holm): adjusted over all pairs of methods for the same score.",
        ]

    def other_data(self) -> list[str]:
        """List the runs whose dataset changed between training and evaluation."""
        runs = [run for entry in self.entries for run in entry.runs if run.facts.other_data]
        return [f"{run.folder}: the dataset has changed since training." for run in runs]

    def differing_settings(self) -> list[str]:
        """List in sentences the settings, other than a method's own, in which methods differ."""
        values: dict[str, dict[str, list[str]]] = {}  # setting → value → methods
        for entry in self.entries:
            for setting, value in entry.runs[0].facts.circumstances().items():
                values.setdefault(setting, {}).setdefault(value, []).append(entry.name)
        sentences = []
        for setting, methods in values.items():
            if len(methods) > 1:
                parts = [f"{value} ({', '.join(names)})" for value, names in methods.items()]
                sentences.append(f"Not the same for all: {setting} is {', '.join(parts)}.")
        return sentences

    def tree(self) -> dict[str, Any]:
        """Return plain dicts and lists for JSON, with None for undefined scores."""
        facts = self.common.facts
        tests = []
        for test in self.tests:
            numbers = _nan_to_none(asdict(test.difference) | {"p_holm": test.p_holm})
            names = {"metric": test.metric, "first": test.first, "second": test.second}
            tests.append({**names, **numbers})
        published = []
        for row in self.published:
            names = {"method": row.method, "protocol": row.protocol, "source": row.source}
            published.append({**names, **row.scores()})
        return {
            "protocol": facts.protocol,
            "dataset": facts.dataset,
            "part": facts.part,
            "folds": len(facts.folds),
            "cases": len(self.common.cases),
            "patients": len(set(self.common.groups)),
            "explanation": self.explanation(),
            "unequal": self.differing_settings(),
            "other_data": self.other_data(),
            "methods": [self._method_tree(entry) for entry in self.entries],
            "tests": tests,
            "published": published,
        }

    def _method_tree(self, entry: MethodResult) -> dict[str, Any]:
        def by_metric(scores: list[ScoreSummary]) -> dict[str, Any]:
            trees = [_nan_to_none(asdict(score)) for score in scores]
            return dict(zip(self.common.metrics, trees, strict=True))

        classes = {}
        for name, value in self.common.classes.items():
            presence, scores = asdict(entry.presence[name]), by_metric(entry.classes[name])
            classes[name] = {"value": value, **presence, "scores": scores}
        runs = []
        for run in entry.runs:
            facts = run.facts
            files = {"evaluation": str(run.folder), "seed": facts.seed}
            runs.append({**files, "checkpoint": facts.checkpoint, "step": facts.step})
        return {
            "method": entry.name,
            "labeled": entry.runs[0].facts.labeled,
            "split": entry.runs[0].facts.split,
            "runs": runs,
            "classes": classes,
            "mean": {**asdict(entry.all_presence), "scores": by_metric(entry.mean)},
        }


def compare_runs(runs: Sequence[Evaluation]) -> Comparison:
    """Group the runs by method and compare the methods, in the order given.

    Raises UsageError if the runs cannot be compared, and names what differs or is given twice.
    """
    for other in runs[1:]:
        _check_comparable(runs[0], other)
    groups: dict[tuple[str, str], list[Evaluation]] = {}
    for run in runs:
        groups.setdefault((run.facts.settings(), run.facts.labeled_patients), []).append(run)
    names = _method_names(list(groups.values()))
    entries = []
    for name, members in zip(names, groups.values(), strict=True):
        _check_repetitions(name, members)
        entries.append(_summarize_method(name, members, runs[0]))

    tests = []
    for m in range(len(runs[0].metrics)):
        tests += _paired_tests(entries, m)
    return Comparison(entries, tests, _published(runs))


def _published(runs: Sequence[Evaluation]) -> list[PublishedRow]:
    """Return the published scores, if all runs are of one number of labeled cases."""
    facts = runs[0].facts
    counts = {run.facts.labeled_patients for run in runs}
    if facts.from_folds or len(counts) > 1:
        return []
    return published_rows(facts.dataset, facts.labeled)


def mean_over_runs(scores: Scores) -> Scores:
    """Average scores [R, N, …] over the runs in which they are defined: [N, …]."""
    return means(np.moveaxis(scores, 0, -1))


def _check_comparable(first: Evaluation, other: Evaluation) -> None:
    """Raise UsageError with all differences unless both score the same cases in the same way.

    The numbers of labeled patients may differ: the methods are then named after them.
    """
    pairs = {
        "dataset": (first.facts.dataset, other.facts.dataset),
        "protocol": (first.facts.protocol, other.facts.protocol),
        "part": (first.facts.part, other.facts.part),
        "classes": (_list_classes(first), _list_classes(other)),
        "scores": (", ".join(first.metrics), ", ".join(other.metrics)),
    }
    if first.facts.labeled_patients == other.facts.labeled_patients:
        pairs["split"] = (first.facts.split, other.facts.split)
    differences = [f"{name} ({a} and {b})" for name, (a, b) in pairs.items() if a != b]

    missing = len(set(first.cases) - set(other.cases))
    extra = len(set(other.cases) - set(first.cases))
    patients = dict(zip(first.cases, first.groups, strict=True))
    other_patients = dict(zip(other.cases, other.groups, strict=True))
    if missing or extra:
        counts = f"{missing} are only in the first, {extra} only in the second"
        differences.append(f"test cases ({counts})")
    elif _folds(first) != _folds(other):
        differences.append("the cases of the folds")
    elif patients != other_patients:
        differences.append("the patients of the cases")
    elif first.facts.truth != other.facts.truth:
        differences.append("the labels of the test cases")
    elif first.facts.images != other.facts.images:
        differences.append("the images of the test cases")

    if differences:
        raise UsageError(
            f"{first.folder} and {other.folder} cannot be compared; "
            f"they differ in {'; '.join(differences)}"
        )


def _folds(run: Evaluation) -> list[list[str]]:
    """Return the cases that each fold held out, in an order that all runs share."""
    return sorted(sorted(fold.cases) for fold in run.facts.folds)


def _list_classes(run: Evaluation) -> str:
    """List the classes with their values in the label files."""
    return ", ".join(f"{name} = {value}" for name, value in run.classes.items())


def _check_repetitions(name: str, runs: list[Evaluation]) -> None:
    """Raise UsageError if runs of one method share a seed, or mix best and last checkpoints."""
    folders = {Path(run.facts.checkpoint).name: run.folder for run in runs}
    if {"best.pth", "last.pth"} <= folders.keys():
        raise UsageError(
            f"{folders['best.pth']} scored best.pth and {folders['last.pth']} scored last.pth; "
            f"evaluate the same checkpoint for all runs of {name}"
        )
    by_seed: dict[int, Evaluation] = {}
    for run in runs:
        twin = by_seed.setdefault(run.facts.seed, run)
        if twin is not run:
            raise UsageError(
                f"{twin.folder} and {run.folder} have the same method, settings and seed "
                f"{run.facts.seed}; give only one of them"
            )


def _method_names(groups: list[list[Evaluation]]) -> list[str]:
    """Name each group of runs by its method and, if these differ, its number of labels.

    The run folder is added if several groups share that name.
    """
    methods = [runs[0].facts.title for runs in groups]
    labeled = [runs[0].facts.labeled_patients for runs in groups]
    if len(set(labeled)) > 1:
        methods = [f"{m}, {count} labeled" for m, count in zip(methods, labeled, strict=True)]
    names = []
    for method, runs in zip(methods, groups, strict=True):
        folder = re.sub(r"-seed\d+$", "", runs[0].run.resolve().name)
        names.append(method if methods.count(method) == 1 else f"{method} ({folder})")

    unique = []
    for name, method, runs in zip(names, methods, groups, strict=True):
        full = f"{method} ({runs[0].run})"
        unique.append(name if names.count(name) == 1 else full)
    return unique


def _summarize_method(name: str, runs: list[Evaluation], common: Evaluation) -> MethodResult:
    """Summarize the runs of one method, with their cases in the order of `common`."""
    aligned = []
    for run in runs:
        order = [run.cases.index(case) for case in common.cases]
        aligned.append(run.scores[order])
    scores = np.stack(aligned)
    metrics = range(scores.shape[3])
    classes, presence = {}, {}
    for k, label in enumerate(common.classes):
        presence[label] = sum((run.presence[k] for run in runs), Presence(0, 0))
        classes[label] = [_summarize_scores(scores[:, :, [k], m], common.groups) for m in metrics]
    mean = [_summarize_scores(scores[..., m], common.groups) for m in metrics]
    return MethodResult(name, runs, scores, classes, mean, presence)


def _summarize_scores(scores: Scores, groups: list[str]) -> ScoreSummary:
    """Summarize one metric of some classes, [R, N, classes].

    The bootstrap resamples patients with their scores in all runs.
    """
    _, overall = summarize(np.concatenate(list(scores), axis=1), groups=groups)
    run_means = means(means(scores.swapaxes(1, 2)))
    sd = float(run_means.std(ddof=1)) if len(scores) > 1 else nan
    undefined = int(np.isnan(scores).sum())
    counts = scores.size - undefined, undefined
    return ScoreSummary(overall.mean, sd, overall.low, overall.high, *counts)


def _paired_tests(entries: list[MethodResult], m: int) -> list[PairedTest]:
    """Test all pairs of methods under metric number `m`."""
    common = entries[0].runs[0]
    pairs = list(combinations(entries, 2))
    differences = []
    for first, second in pairs:
        ours, theirs = mean_over_runs(first.scores[..., m]), mean_over_runs(second.scores[..., m])
        differences.append(paired(ours, theirs, common.groups))
    adjusted = holm([difference.p for difference in differences])
    tests = []
    for (first, second), difference, p in zip(pairs, differences, adjusted, strict=True):
        tests.append(PairedTest(common.metrics[m], first.name, second.name, difference, p))
    return tests


def _nan_to_none(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and isnan(value) else value
        for key, value in tree.items()
    }
