"""The table of methods by augmentation, and paired differences, from the records of one setting.

Legend: R runs (seeds) of a method, N cases, K − 1 foreground classes, M metrics.
"""

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import link, table
from crkd_cli.metrics.names import metric_heading
from crkd_cli.metrics.paired import Difference, holm, paired
from crkd_cli.metrics.summary import means, summarize

Record = dict[str, Any]
Runs = list[Record]
RECIPES = ("published", "strong")


def recipes(records: Runs) -> str:
    """Return a row for each method with the scores of both augmentations and their difference.

    A second table compares all pairs of methods with several seeds. Links to the records follow.
    """
    by_method: dict[str, dict[str, Runs]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        augment = record["config"]["data"].get("augment", "published")
        by_method[record["label"]][augment].append(record)
    order = sorted(by_method, key=lambda name: -_best(by_method[name].values()))
    rows = [_row(name, by_method[name]) for name in order]
    head = ["method"]
    for recipe in RECIPES:
        head += [f"{recipe}: Dice % (95 % CI)", metric_heading(_distance(records))]
    text = table([*head, "strong − published"], rows)

    repeated = {
        f"{name}, {recipe}": runs
        for name in order
        for recipe, runs in by_method[name].items()
        if len(runs) > 1
    }
    if len(repeated) > 1:
        text += "\n" + _pairs(repeated)
    files = "; ".join(f"{name} {_records(by_method[name])}" for name in order)
    return f"{text}\nRecords by seed: {files}.\n"


def scores(runs: Runs) -> NDArray[np.float64]:
    """Return [R, N, K − 1, M], with NaN for undefined scores."""
    trees = [[case[2:] for case in record["cases"]] for record in runs]
    return np.array(trees, dtype=np.float64)


def difference(first: Runs, second: Runs) -> Difference:
    """Compare the Dice of two methods on the same cases, averaged over their runs."""
    cases = {tuple(map(tuple, (case[:2] for case in run["cases"]))) for run in (*first, *second)}
    if len(cases) > 1:
        raise ValueError(f"{first[0]['file']} and {second[0]['file']} scored different cases")
    groups = [case[1] for case in first[0]["cases"]]
    averages = [means(np.moveaxis(scores(runs)[..., 0], 0, -1)) for runs in (first, second)]
    return paired(averages[0], averages[1], groups)


def _best(groups: Iterable[Runs]) -> float:
    return max(mean(_values(runs, "dice")) for runs in groups)


def _distance(runs: Runs) -> str:
    """Return the name of HD95 in the unit of these runs."""
    (metric,) = [m for m in runs[0]["evaluation"]["scores"]["mean"] if m.startswith("hd95")]
    return metric


def _values(runs: Runs, metric: str) -> list[float]:
    """Return the mean scores of the runs in which they are defined."""
    values = [run["evaluation"]["scores"]["mean"][metric][0] for run in runs]
    return [value for value in values if value is not None]


def _row(name: str, groups: dict[str, Runs]) -> list[str]:
    cells = [name]
    for recipe in RECIPES:
        cells += _cells(groups[recipe]) if groups[recipe] else ["–"] * 2
    return [*cells, _gain(groups["published"], groups["strong"])]


def _gain(published: Runs, strong: Runs) -> str:
    """Return the difference that the strong augmentation makes with the seeds of both."""
    seeds = {run["seed"] for run in published} & {run["seed"] for run in strong}
    if not seeds:
        return "–"
    first, second = ([run for run in runs if run["seed"] in seeds] for runs in (strong, published))
    return _interval(difference(first, second))


def _records(groups: dict[str, Runs]) -> str:
    """Return links to the records of a method, named by their seeds."""
    return ", ".join(
        f"{recipe} " + " ".join(link(run["file"], str(run["seed"])) for run in groups[recipe])
        for recipe in RECIPES
        if groups[recipe]
    )


def _cells(runs: Runs) -> list[str]:
    """Return Dice (± SD over seeds) with its interval over patients, and HD95."""
    dice = [100 * value for value in _values(runs, "dice")]
    text = f"{mean(dice):.1f}"
    if len(runs) > 1:
        text += f" ± {stdev(dice):.1f}"
    groups = [case[1] for case in runs[0]["cases"]]
    by_run = list(scores(runs)[..., 0])
    _, overall = summarize(np.concatenate(by_run, axis=1), groups=groups)
    text += f" ({100 * overall.low:.1f} to {100 * overall.high:.1f})"
    distances = _values(runs, _distance(runs))
    return [text, f"{mean(distances):.1f}" if distances else "–"]


def _pairs(groups: dict[str, Runs]) -> str:
    """Return a row for each pair of methods, with p-values adjusted for their number."""
    pairs = list(combinations(groups, 2))
    differences = [difference(groups[first], groups[second]) for first, second in pairs]
    rows = []
    for pair, value, p in zip(pairs, differences, holm([d.p for d in differences]), strict=True):
        rows.append([*pair, _interval(value), _p(value.p), _p(p)])
    return table(["first", "second", "Dice %: first − second", "p", "p (Holm)"], rows)


def _interval(value: Difference) -> str:
    low, high = 100 * value.low, 100 * value.high
    return f"{100 * value.mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
