"""A comparison as tables of text, which a terminal, Markdown and HTML show alike; and its files."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

from crkd_cli.evaluation.literature import PublishedRow
from crkd_cli.metrics.names import format_values, higher_is_better, metric_heading
from crkd_cli.metrics.paired import Difference
from crkd_cli.paths import atomic_write
from crkd_cli.reporting.compare import Comparison, MethodResult, ScoreSummary


class Cell(NamedTuple):
    text: str
    best: bool = False  # of all methods under this score


@dataclass(frozen=True)
class Table:
    title: str
    headings: list[str]
    words: int  # columns on the left that hold words; the others hold numbers
    sections: list[list[list[Cell]]]  # rows in groups
    notes: list[str]


def tables(comparison: Comparison, classes: int | None = None) -> list[Table]:
    """Scores, tests where there are several methods, published rows where there are any.

    With more than `classes` classes their columns are left out, which a note says.
    """
    result = [_scores(comparison, classes)]
    if comparison.tests:
        result.append(_tests(comparison))
    if comparison.published:
        result.append(published_table(comparison.published))
    return result


def _scores(comparison: Comparison, most: int | None) -> Table:
    one = comparison.one
    names = one.classes if most is None or len(one.classes) <= most else []
    patients = f" of {len(set(one.groups))} patients" if comparison.unit == "patients" else ""
    title = (
        f"{one.facts.dataset}, {one.facts.part}: {len(one.cases)} cases{patients}, {one.facts.protocol} protocol, "
        f"{one.facts.labeled} labeled"
    )
    notes = [*comparison.unequal(), *comparison.explanation()[:2]]
    undefined = sum(score.undefined for entry in comparison.entries for score in entry.mean)
    notes += [f"{undefined} scores are undefined and left out."] if undefined else []
    notes += (
        [] if names else [f"The scores of the {len(one.classes)} classes are in the files: --out."]
    )
    headings = ["score", "method", "runs", "mean ± SD", "95 % CI", *names]
    sections = [
        _section(comparison.entries, m, metric, names) for m, metric in enumerate(one.metrics)
    ]
    return Table(title, headings, 2, sections, notes)


def _section(
    entries: list[MethodResult], m: int, metric: str, names: list[str]
) -> list[list[Cell]]:
    """The rows of one metric."""
    means = [entry.mean[m] for entry in entries]
    columns = [
        _best(metric, [mean.mean for mean in means], [_spread(metric, mean) for mean in means])
    ]
    for name in names:
        values = [entry.classes[name][m].mean for entry in entries]
        columns.append(_best(metric, values, format_values(metric, *values)))
    rows = []
    for i, entry in enumerate(entries):
        mean, *classes = (column[i] for column in columns)
        interval = (
            ""
            if isnan(means[i].low)
            else "[{}, {}]".format(*format_values(metric, means[i].low, means[i].high))
        )
        rows.append(
            [
                Cell(metric_heading(metric)),
                Cell(entry.name),
                Cell(str(len(entry.runs))),
                mean,
                Cell(interval),
                *classes,
            ]
        )
    return rows


def _spread(metric: str, score: ScoreSummary) -> str:
    mean, sd = format_values(metric, score.mean, score.sd)
    return mean if isnan(score.sd) else f"{mean} ± {sd}"


def _best(metric: str, values: list[float], texts: list[str]) -> list[Cell]:
    """`texts` with the best of `values` marked, and what reads the same; nothing where all do."""
    read = format_values(metric, *values)
    defined = [value for value in values if not isnan(value)]
    if len(set(read)) == 1 or not defined:
        return [Cell(text) for text in texts]
    (best,) = format_values(metric, max(defined) if higher_is_better(metric) else min(defined))
    return [Cell(text, one == best) for one, text in zip(read, texts, strict=True)]


def _tests(comparison: Comparison) -> Table:
    sections: list[list[list[Cell]]] = []
    for metric in comparison.one.metrics:
        rows = []
        for test in (test for test in comparison.tests if test.metric == metric):
            difference = test.difference
            mean, low, high = format_values(
                metric, difference.mean, difference.low, difference.high
            )
            interval = "" if isnan(difference.low) else f"[{low}, {high}]"
            texts = [
                metric_heading(metric),
                f"{test.first} − {test.second}",
                mean,
                interval,
                str(difference.n),
            ]
            rows.append([Cell(text) for text in (*texts, _p(difference.p), _p(test.p_holm))])
        sections.append(rows)
    headings = ["score", "methods", "difference", "95 % CI", comparison.unit, "p", "p (Holm)"]
    return Table("paired differences", headings, 2, sections, comparison.explanation()[2:])


def _p(value: float) -> str:
    if isnan(value):
        return "undefined"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def published_table(rows: Sequence[PublishedRow]) -> Table:
    """What was published for a data set and label count."""
    title = f"published for {rows[0].dataset} with {rows[0].labeled} labeled"
    note = "paper: by --protocol paper, best checkpoint on the cases scored; authors: each in their own way"
    headings = ["method", "protocol", "source", "Dice %", "Jaccard %", "HD95 px", "ASD px"]
    section = []
    for row in rows:
        scores = (
            "" if score is None else f"{score:.2f}"
            for score in (row.dice, row.jaccard, row.hd95, row.asd)
        )
        section.append([Cell(text) for text in (row.method, row.protocol, row.source, *scores)])
    return Table(title, headings, 3, [section], [note])


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """comparison.json (everything), scores.csv, tests.csv and comparison.md into `folder`."""
    with atomic_write(folder / "comparison.json") as temporary:
        temporary.write_text(
            json.dumps(comparison.tree(), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
    scores = _score_rows(comparison)
    _write_csv(folder / "scores.csv", scores, dict.fromkeys(chain.from_iterable(scores)))
    columns = ["metric", "first", "second", *(field.name for field in fields(Difference)), "p_holm"]
    _write_csv(folder / "tests.csv", comparison.tree()["tests"], columns)
    with atomic_write(folder / "comparison.md") as temporary:
        temporary.write_text("\n".join(map(_markdown, tables(comparison))), encoding="utf-8")


def _write_csv(file: Path, rows: list[dict[str, Any]], columns: Iterable[str]) -> None:
    with (
        atomic_write(file) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as lines,
    ):
        writer = csv.DictWriter(lines, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def _score_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per method, class and metric, "mean" being the mean of the classes; then the published scores in the same units."""
    tree = comparison.tree()
    rows: list[dict[str, Any]] = []
    for method in tree["methods"]:
        common = {
            "protocol": tree["protocol"],
            "source": "",
            "method": method["method"],
            "runs": len(method["runs"]),
        }
        for name, scores in {**method["classes"], "mean": method["mean"]}.items():
            rows += [
                {**common, "class": name, "metric": metric, **score}
                for metric, score in scores.items()
            ]
    for row in comparison.published:
        common = {
            "protocol": row.protocol,
            "source": row.source,
            "method": row.method,
            "class": "mean",
        }
        rows += [
            {**common, "metric": metric, "mean": score} for metric, score in row.scores().items()
        ]
    return rows


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = ["---" if i < table.words else "---:" for i in range(len(table.headings))]
    rows = [
        [f"**{cell.text}**" if cell.best else cell.text for cell in row]
        for section in table.sections
        for row in section
    ]
    return "\n".join(
        [
            f"## {table.title}",
            "",
            *map(line, (table.headings, rule, *rows)),
            "",
            *(f"- {note}" for note in table.notes),
            "",
        ]
    )
