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
        Path, typer.Argument(help="A best.pth or last.pth that crkd train wrote.")
    ],
    part: Annotated[
        Literal["test", "val"] | None,
        typer.Option(
            "--part",
            help="Default: test, or val where the split has no test.",
            rich_help_panel="Evaluation",
        ),
    ] = None,
    protocol: Annotated[
        Literal["strict", "paper"],
        typer.Option(
            "--protocol",
            help="strict: fair. paper: as published, to stand beside printed tables only.",
            rich_help_panel="Evaluation",
        ),
    ] = "strict",
    data_root: DataRoot = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            rich_help_panel="Output",
            help="Default: evaluation-PROTOCOL-PART beside the checkpoint; a last.pth beside a best.pth adds -last.",
        ),
    ] = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a checkpoint on the test cases of its split: a table, cases.csv and summary.json.

    Example: crkd evaluate runs/la-crkd-4/last.pth
    """
    info("loading PyTorch")
    from crkd_cli import world
    from crkd_cli.evaluation.evaluate import evaluate as run
    from crkd_cli.paths import data_root as root_of

    report = run(checkpoint, root_of(data_root), info, progress, part, protocol, out, device)
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
    """Our scores per class and the mean of the classes."""
    from crkd_cli.reporting.tables import Cell, Table

    facts = report.facts
    title = (
        f"{facts['dataset']}, {facts['part']}: {facts['cases']} cases, {facts['protocol']} protocol; "
        f"{facts['method']}, {facts['labeled']} labeled, step {facts['step']}"
    )
    caption = (
        "mean" if all(isnan(one.low) for one in report.mean) else f"mean [{facts['interval']}]"
    )
    if undefined := sum(
        one.undefined for summaries in report.classes.values() for one in summaries
    ):
        caption += f"; {undefined} scores undefined and left out"

    def row(name: str, summaries: list["Summary"]) -> list[Cell]:
        return [Cell(name), *map(Cell, map(_cell, report.metrics, summaries))]

    sections = [
        [row(name, summaries) for name, summaries in report.classes.items()],
        [row("mean", report.mean)],
    ]
    return Table(title, ["class", *map(metric_heading, report.metrics)], 1, sections, [caption])


def _cell(metric: str, summary: "Summary") -> str:
    mean, low, high = format_values(metric, summary.mean, summary.low, summary.high)
    return mean if isnan(summary.low) else f"{mean} [{low}, {high}]"
