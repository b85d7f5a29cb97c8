"""`crkd evaluate`."""

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crkd_cli.cli.bars import progress
from crkd_cli.cli.console import command, info, narrow, show
from crkd_cli.cli.options import DataRoot, Device, Json, Quiet, Raw, Tta, Verbose
from crkd_cli.errors import pluralize
from crkd_cli.metrics.names import class_heading, format_values, higher_is_better, metric_heading
from crkd_cli.text import format_range

if TYPE_CHECKING:
    from crkd_cli.evaluation.evaluate import EvaluationReport
    from crkd_cli.metrics.summary import Summary
    from crkd_cli.reporting.tables import Table


@command
def evaluate(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT",
            help="A best.pth or last.pth from crkd train, or a run folder. Several are scored as "
            "one ensemble; the folds of a cross-validation each on the cases that they held out.",
            show_default=False,
        ),
    ],
    part: Annotated[
        Literal["test", "val", "fold"] | None,
        typer.Option(
            "--part",
            help="Part of the split to score. Default: fold for folds, else test, or val if there "
            "are no test cases.",
            rich_help_panel="Evaluation",
        ),
    ] = None,
    protocol: Annotated[
        Literal["strict", "paper"],
        typer.Option(
            "--protocol",
            help="strict: fair scores. paper: as published, only to compare with published tables.",
            rich_help_panel="Evaluation",
        ),
    ] = "strict",
    tta: Tta = False,
    raw: Raw = False,
    other_data: Annotated[
        bool,
        typer.Option(
            "--other-data",
            help="Score even if the dataset has changed since the model was trained.",
            rich_help_panel="Evaluation",
        ),
    ] = False,
    data_root: DataRoot = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            rich_help_panel="Output",
            help="Folder of the results. Default: evaluation-PROTOCOL-PART beside the checkpoint, "
            "with -tta for --tta, -raw for --raw, and -last for a last.pth beside a best.pth. An "
            "ensemble needs it, unless it is a folder of folds.",
        ),
    ] = None,
    overlay: Annotated[
        bool,
        typer.Option(
            "--overlay",
            help="Also write a picture of every case with the contours of prediction and "
            "reference.",
            rich_help_panel="Output",
        ),
    ] = False,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a checkpoint on the test cases of its split.

    Example: crkd evaluate runs/la-crkd-4/last.pth

    Prints a table and writes cases.csv and summary.json.

    In a folder of crkd train --folds, each case is scored by the fold that held
    it out; --part test scores the average of all folds on a test part.
    """
    info("loading PyTorch")
    from crkd_cli import world
    from crkd_cli.evaluation.evaluate import evaluate as run
    from crkd_cli.paths import resolve_data_root

    root = resolve_data_root(data_root)
    report = run(
        checkpoints,
        root,
        info,
        progress,
        part,
        protocol,
        out,
        device,
        other_data=other_data,
        tta=tta,
        raw=raw,
        overlays=overlay,
    )
    if world.rank():
        return
    if json:
        from json import dumps

        print(dumps(report.tree(), indent=2))
    elif not quiet:
        for table in _tables(report):
            show(table)
    info(f"written: {report.folder / 'cases.csv'} and {report.folder / 'summary.json'}")
    if overlay:
        info(f"overlays: {report.folder / 'overlays'}")


def _tables(report: "EvaluationReport") -> list["Table"]:
    """Return the tables of scores and of published scores.

    In a narrow terminal, the first shows only Dice and one distance.
    """
    from crkd_cli.reporting.tables import published_table

    metrics = range(len(report.metrics))
    table = _table(report, metrics)
    if narrow(table.width):
        distance = next(m for m in metrics if not higher_is_better(report.metrics[m]))
        table = _table(report, [0, distance])
        table.notes.append("the other scores are in summary.json")
    if not report.published:
        return [table]
    return [table, published_table(report.published)]


def _table(report: "EvaluationReport", metrics: Sequence[int]) -> "Table":
    """Return a table of the scores under `metrics` per class, and of their mean."""
    from crkd_cli.metrics.presence import Presence
    from crkd_cli.reporting.tables import ABOUT_FALSE_POSITIVES, FALSE_POSITIVES, Cell, Table

    title = _title(report.facts)
    total = sum((scored.presence for scored in report.classes.values()), Presence(0, 0))
    headings, notes = ["class"], [_describe_mean(report)]
    if report.facts["folds"]:
        notes.append("each case is scored by the fold that held it out")
    if total.absent:
        headings += ["n", FALSE_POSITIVES]
        notes.append(f"n: cases with a score; {ABOUT_FALSE_POSITIVES}")
    headings += [metric_heading(report.metrics[m]) for m in metrics]

    def row(name: str, presence: Presence, summaries: list["Summary"]) -> list[Cell]:
        texts = [name]
        if total.absent:
            texts += [str(summaries[0].n), str(presence)]
        texts += [_mean_and_interval(report.metrics[m], summaries[m]) for m in metrics]
        return [Cell(text) for text in texts]

    classes = []
    for k, (name, scored) in enumerate(report.classes.items(), start=1):
        heading = class_heading(name, scored.value, k)
        classes.append(row(heading, scored.presence, scored.scores))
    return Table(title, headings, 1, [classes, [row("mean", total, report.mean)]], notes)


def _title(facts: dict[str, Any]) -> str:
    """Say what was scored."""
    folds = facts["folds"]
    part = f"{len(folds)} folds" if folds else facts["part"]
    title = (
        f"{facts['dataset']}, {part}: {pluralize(facts['cases'], 'case')}, "
        f"{facts['protocol']} protocol; {facts['method']}, "
        f"{format_range([facts['labeled'], *(fold['labeled'] for fold in folds)])} labeled, "
        f"step {format_range([facts['step'], *(fold['step'] for fold in folds)])}"
    )
    if facts["members"]:
        title += f", ensemble of {len(facts['members'])}"
    if facts["tta"]:
        title += ", test-time mirroring"
    if facts["postprocessing"] or any(fold["postprocessing"] for fold in folds):
        title += ", post-processed"
    return title


def _describe_mean(report: "EvaluationReport") -> str:
    """Describe the numbers in the table."""
    text = f"mean [{report.facts['interval']}]"
    if all(isnan(summary.low) for summary in report.mean):
        text = "mean"
    scores = [score for scored in report.classes.values() for score in scored.scores]
    if undefined := sum(score.undefined for score in scores):
        text += f"; {undefined} scores undefined and left out"
    return text


def _mean_and_interval(metric: str, summary: "Summary") -> str:
    mean, low, high = format_values(metric, summary.mean, summary.low, summary.high)
    return mean if isnan(summary.low) else f"{mean} [{low}, {high}]"
