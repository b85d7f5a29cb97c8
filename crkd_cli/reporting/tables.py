"""A comparison as tables of text, the same in a terminal, Markdown and HTML; and its files."""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

from crkd_cli.errors import pluralize
from crkd_cli.evaluation.literature import PublishedRow
from crkd_cli.metrics.names import UNDEFINED, format_values, higher_is_better, metric_heading
from crkd_cli.metrics.paired import Difference
from crkd_cli.paths import atomic_write
from crkd_cli.reporting.compare import Comparison, MethodResult, PairedTest, ScoreSummary
from crkd_cli.text import csv_cell, printable

# "2/9": a class is predicted in 2 of the 9 cases without it.
FALSE_POSITIVES = "FP/absent"
ABOUT_FALSE_POSITIVES = f"{FALSE_POSITIVES}: cases without the class in which it is predicted"


class Cell(NamedTuple):
    """A text of a table."""

    text: str
    best: bool = False  # of all methods for this score


Row = list[Cell]


@dataclass(frozen=True)
class Table:
    """A table of text with a title and notes."""

    title: str
    headings: list[str]
    words: int  # columns on the left that contain words; the others contain numbers
    sections: list[list[Row]]  # groups of rows
    notes: list[str]

    @property
    def width(self) -> int:
        """The width of the table in characters."""
        rows = [self.headings, *([cell.text for cell in row] for row in chain(*self.sections))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return sum(widths) + 3 * (len(widths) - 1)


def tables(comparison: Comparison, max_classes: int | None = None) -> list[Table]:
    """Return the scores, the tests between methods and the published rows, if there are any.

    With more than `max_classes` classes, a note replaces their columns.
    """
    result = [_score_table(comparison, max_classes)]
    if comparison.tests:
        result.append(_test_table(comparison))
    if comparison.published:
        result.append(published_table(comparison.published))
    return result


def _score_table(comparison: Comparison, max_classes: int | None) -> Table:
    common = comparison.common
    facts = common.facts
    cases = pluralize(len(common.cases), "case")
    if comparison.unit == "patients":
        cases += f" of {len(set(common.groups))} patients"
    title = (
        f"{facts.dataset}, {facts.part_title}: {cases}, {facts.protocol} protocol, "
        f"{comparison.labeled} labeled"
    )

    notes = [*comparison.other_data(), *comparison.differing_settings()]
    notes += comparison.explanation()[:-2]
    undefined = sum(score.undefined for entry in comparison.entries for score in entry.mean)
    if undefined:
        notes.append(f"{undefined} scores are undefined and left out.")
    classes = list(common.classes)
    if max_classes is not None and len(classes) > max_classes:
        notes.append("--out writes the scores of every class.")
        classes = []

    class_headings = [common.class_headings[name] for name in classes]
    headings = ["score", "method", "runs", "mean ± SD", "95 % CI", *class_headings]
    sections = []
    for m, metric in enumerate(common.metrics):
        sections.append(_score_rows(comparison.entries, m, metric, classes))
    if any(entry.all_presence.absent for entry in comparison.entries):
        sections.append(_false_positive_rows(comparison.entries, classes))
        notes.append(f"{ABOUT_FALSE_POSITIVES}, over all runs.")
    return Table(title, headings, 2, sections, notes)


def _score_rows(entries: list[MethodResult], m: int, metric: str, classes: list[str]) -> list[Row]:
    """Return one row per method for metric number `m`, with columns for `classes`."""
    means = [entry.mean[m] for entry in entries]
    texts = [_mean_and_sd(metric, mean) for mean in means]
    mean_column = _mark_best(metric, [mean.mean for mean in means], texts)
    class_columns = []
    for name in classes:
        values = [entry.classes[name][m].mean for entry in entries]
        class_columns.append(_mark_best(metric, values, format_values(metric, *values)))

    rows = []
    for i, entry in enumerate(entries):
        rows.append(
            [
                Cell(metric_heading(metric)),
                Cell(entry.name),
                Cell(str(len(entry.runs))),
                mean_column[i],
                Cell(_interval(metric, means[i].low, means[i].high)),
                *(column[i] for column in class_columns),
            ]
        )
    return rows


def _false_positive_rows(entries: list[MethodResult], classes: list[str]) -> list[Row]:
    """Return one row per method: its false positives over all classes and for each of `classes`."""
    rows = []
    for entry in entries:
        texts = [FALSE_POSITIVES, entry.name, str(len(entry.runs)), str(entry.all_presence), ""]
        texts += [str(entry.presence[name]) for name in classes]
        rows.append([Cell(text) for text in texts])
    return rows


def _mean_and_sd(metric: str, score: ScoreSummary) -> str:
    mean, sd = format_values(metric, score.mean, score.sd)
    return mean if isnan(score.sd) else f"{mean} ± {sd}"


def _interval(metric: str, low: float, high: float) -> str:
    if isnan(low):
        return ""
    return "[{}, {}]".format(*format_values(metric, low, high))


def _mark_best(metric: str, values: list[float], texts: list[str]) -> Row:
    """Mark the `texts` whose values read like the best one; none if all values read the same."""
    formatted = format_values(metric, *values)
    defined = [value for value in values if not isnan(value)]
    if len(set(formatted)) == 1 or not defined:
        return [Cell(text) for text in texts]
    best = max(defined) if higher_is_better(metric) else min(defined)
    (best_text,) = format_values(metric, best)
    return [Cell(text, value == best_text) for value, text in zip(formatted, texts, strict=True)]


def _test_table(comparison: Comparison) -> Table:
    some_left_out = any(test.difference.left_out for test in comparison.tests)
    sections = []
    for metric in comparison.common.metrics:
        tests = [test for test in comparison.tests if test.metric == metric]
        sections.append([_test_row(test, some_left_out) for test in tests])
    # Short headings: the table fits into 80 columns.
    headings = ["score", "methods", "mean", "95 % CI", "n"]
    notes = [f"n: {comparison.unit} with a score of both methods.", *comparison.explanation()[-2:]]
    if some_left_out:
        headings.append("pairs")
        common = comparison.common
        notes.append(
            "pairs: scores of a case and class that are defined for both methods, of "
            f"{len(common.cases) * len(common.classes)}."
        )
    return Table("paired differences", [*headings, "p", "p (Holm)"], 2, sections, notes)


def _test_row(test: PairedTest, some_left_out: bool) -> Row:
    difference = test.difference
    texts = [
        metric_heading(test.metric),
        f"{test.first} − {test.second}",
        *format_values(test.metric, difference.mean),
        _interval(test.metric, difference.low, difference.high),
        str(difference.n),
    ]
    if some_left_out:
        texts.append(str(difference.pairs))
    return [Cell(text) for text in (*texts, _format_p(difference.p), _format_p(test.p_holm))]


def _format_p(p: float) -> str:
    if isnan(p):
        return UNDEFINED
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def published_table(published: Sequence[PublishedRow]) -> Table:
    """Return the published scores, all for one dataset and number of labeled cases."""
    title = f"published for {published[0].dataset} with {published[0].labeled} labeled"
    note = (
        "paper: by --protocol paper, best checkpoint on the scored cases; "
        "authors: as each source reports it"
    )
    headings = ["method", "protocol", "source", "Dice %", "Jaccard %", "HD95 px", "ASD px"]
    rows = []
    for row in published:
        scores = (row.dice, row.jaccard, row.hd95, row.asd)
        numbers = ["" if score is None else f"{score:.2f}" for score in scores]
        texts = (row.method, row.protocol, row.source, *numbers)
        rows.append([Cell(text) for text in texts])
    return Table(title, headings, 3, [rows], [note])


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write comparison.json (everything), scores.csv, tests.csv and comparison.md to `folder`."""
    tree = comparison.tree()
    with atomic_write(folder / "comparison.json") as temporary:
        text = json.dumps(tree, indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    scores = [*_method_records(tree), *_published_records(comparison.published)]
    _write_csv(folder / "scores.csv", scores, dict.fromkeys(chain.from_iterable(scores)))
    columns = ["metric", "first", "second", *(field.name for field in fields(Difference)), "p_holm"]
    _write_csv(folder / "tests.csv", tree["tests"], columns)
    with atomic_write(folder / "comparison.md") as temporary:
        temporary.write_text("\n".join(map(_markdown, tables(comparison))), encoding="utf-8")


def _write_csv(file: Path, records: list[dict[str, Any]], columns: Iterable[str]) -> None:
    with (
        atomic_write(file) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as lines,
    ):
        writer = csv.DictWriter(lines, list(columns))
        writer.writeheader()
        for record in records:
            writer.writerow({key: csv_cell(value) for key, value in record.items()})


def _method_records(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one record per method, class and metric; class "mean" is the mean of the classes."""
    records = []
    for method in tree["methods"]:
        names = {
            "protocol": tree["protocol"],
            "source": "",
            "method": method["method"],
            "runs": len(method["runs"]),
        }
        for name, info in [*method["classes"].items(), ("mean", method["mean"])]:
            for metric, score in info["scores"].items():
                class_facts = {"class": name, "value": info.get("value"), "metric": metric}
                counts = {key: info[key] for key in ("absent", "false_positives")}
                records.append({**names, **class_facts, **score, **counts})
    return records


def _published_records(published: Sequence[PublishedRow]) -> list[dict[str, Any]]:
    """Return one record per published score, in the units of our own."""
    records = []
    for row in published:
        names = {"protocol": row.protocol, "source": row.source, "method": row.method}
        for metric, score in row.scores().items():
            records.append({**names, "class": "mean", "metric": metric, "mean": score})
    return records


def _markdown(table: Table) -> str:
    numbers = len(table.headings) - table.words
    lines = [
        _markdown_row(table.headings),
        _markdown_row(["---"] * table.words + ["---:"] * numbers),
    ]
    for row in chain.from_iterable(table.sections):
        texts = [f"**{text}**" if best else text for text, best in row]
        lines.append(_markdown_row(texts))
    notes = [f"- {_markdown_text(note)}" for note in table.notes]
    return "\n".join([f"## {_markdown_text(table.title)}", "", *lines, "", *notes, ""])


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_markdown_text, cells))} |"


def _markdown_text(text: str) -> str:
    """Escape cell separators and what would be a link, code or an HTML tag in a name."""
    return re.sub(r"[|`]|\](?=\()|<(?=[A-Za-z/!?])", r"\\\g<0>", printable(text))
