"""`crkd evaluate`."""

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from crkd_cli.cli.console import command, info, progress, show
from crkd_cli.cli.options import DataRoot, Device, Json, Quiet, Verbose
from crkd_cli.metrics.names import format_values, metric_heading

if TYPE_CHECKING:
    from crkd_cli.evaluation.evaluate import EvaluationReport
    from crkd_cli.metrics.summary import Summary
    from crkd_cli.reporting.tables import Table


@command
def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(help="A best.pth or last.pth from crkd train, or a run folder.")
    ],
    part: Annotated[
        Literal["test", "val"] | None,
        typer.Option(
            "--part",
            help="Part of the split to score. Default: test, or val if there are no test cases.",
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
    data_root: DataRoot = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            rich_help_panel="Output",
            help="Folder of the results. Default: evaluation-PROTOCOL-PART beside the checkpoint, "
            "with -last for a last.pth beside a best.pth.",
        ),
    ] = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a checkpoint on the test cases of its split.

    Prints a table and writes cases.csv and summary.json.

    Example: crkd evaluate runs/la-crkd-4/last.pth
    """
    info("loading PyTorch")
    from crkd_cli import world
    from crkd_cli.evaluation.evaluate import evaluate as run
    from crkd_cli.paths import resolve_data_root

    root = resolve_data_root(data_root)
    report = run(checkpoint, root, info, progress, part, protocol, out, device)
    if world.rank():
        return
    if json:
        from json import dumps

        print(dumps(report.tree(), indent=2))
    elif not quiet:
        from crkd_cli.reporting.tables import published_table

        show(_table(report))
        if report.published:
            show(published_table(report.published))
    info(f"written: {report.folder / 'cases.csv'} and {report.folder / 'summary.json'}")


def _table(report: "EvaluationReport") -> "Table":
    """Return a table of the scores per class and of their mean."""
    from crkd_cli.reporting.tables import Cell, Table

    facts = report.facts
    title = (
        f"{facts['dataset']}, {facts['part']}: {facts['cases']} cases, {facts['protocol']} "
        f"protocol; {facts['method']}, {facts['labeled']} labeled, step {facts['step']}"
    )
    note = f"mean [{facts['interval']}]"
    if all(isnan(summary.low) for summary in report.mean):
        note = "mean"
    undefined = sum(score.undefined for scores in report.classes.values() for score in scores)
    if undefined:
        note += f"; {undefined} scores undefined and left out"

    def row(name: str, summaries: list["Summary"]) -> list[Cell]:
        texts = map(_mean_and_interval, report.metrics, summaries)
        return [Cell(name), *map(Cell, texts)]

    classes = [row(name, summaries) for name, summaries in report.classes.items()]
    headings = ["class", *map(metric_heading, report.metrics)]
    return Table(title, headings, 1, [classes, [row("mean", report.mean)]], [note])


def _mean_and_interval(metric: str, summary: "Summary") -> str:
    mean, low, high = format_values(metric, summary.mean, summary.low, summary.high)
    return mean if isnan(summary.low) else f"{mean} [{low}, {high}]"
