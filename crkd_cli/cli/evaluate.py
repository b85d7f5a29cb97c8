"""`crkd evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from crkd_cli.cli.console import command, progress, say
from crkd_cli.cli.options import DataRoot, Device, Json, Quiet, Verbose

if TYPE_CHECKING:
    from rich.table import Table

    from crkd_cli.engine.evaluate import Report
    from crkd_cli.metrics.summary import Summary


@command
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A best.pth or last.pth that crkd train wrote.")],
    part: Annotated[
        Literal["test", "val"] | None,
        typer.Option("--part", help="Default: test, or val where the split has no test.", rich_help_panel="Evaluation"),
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
            "--out", help="Default: evaluation-PROTOCOL-PART beside the checkpoint.", rich_help_panel="Output"
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
    say("loading PyTorch")
    from crkd_cli import world
    from crkd_cli.engine.evaluate import evaluate as run
    from crkd_cli.paths import data_root as root_of

    report = run(checkpoint, root_of(data_root), say, progress, part, protocol, out, device)
    if world.rank():
        return
    if json:
        from json import dumps

        print(dumps(report.tree(), indent=2))
    elif not quiet:
        import sys

        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else 160)
        console.print(_table(report))
        if report.published:
            console.print(_published(report))
    say(f"written: {report.folder / 'cases.csv'} and {report.folder / 'summary.json'}")


def _table(report: "Report") -> "Table":
    """Our scores per class and the mean of the classes."""
    from rich.table import Table

    facts = report.facts
    title = (
        f"{facts['dataset']}, {facts['part']}: {facts['cases']} cases, {facts['protocol']} protocol; "
        f"{facts['method']}, {facts['labeled']} labelled, step {facts['step']}"
    )
    caption = f"mean [{facts['interval']}]"
    if undefined := sum(one.undefined for summaries in report.classes.values() for one in summaries):
        caption += f"; {undefined} scores undefined and left out"
    table = Table("class", title=title, caption=caption, title_justify="left", caption_justify="left")
    for metric in report.metrics:
        table.add_column(_heading(metric), justify="right")
    for name, summaries in report.classes.items():
        table.add_row(name, *map(_cell, report.metrics, summaries))
    table.add_section()
    table.add_row("mean", *map(_cell, report.metrics, report.mean))
    return table


def _published(report: "Report") -> "Table":
    """What was published for the same data set and label count."""
    from rich.table import Table

    title = f"published for {report.facts['dataset']} with {report.facts['labeled']} labelled"
    caption = "paper: by --protocol paper, best checkpoint on these cases; authors: each in their own way"
    table = Table(
        "method", "protocol", "source", title=title, caption=caption, title_justify="left", caption_justify="left"
    )
    for heading in ("Dice %", "Jaccard %", "HD95 px", "ASD px"):
        table.add_column(heading, justify="right")
    for row in report.published:
        scores = ("" if score is None else f"{score:.2f}" for score in (row.dice, row.jaccard, row.hd95, row.asd))
        table.add_row(row.method, row.protocol, row.source, *scores)
    return table


def _heading(metric: str) -> str:
    """dice → Dice %, hd95_mm → HD95 mm, nsd_2mm → NSD % at 2mm."""
    name, _, unit = metric.partition("_")
    if name == "nsd":
        return f"NSD % at {unit}"
    return f"{name.capitalize()} %" if not unit else f"{name.upper()} {unit}"


def _cell(metric: str, summary: "Summary") -> str:
    if summary.n == 0:
        return "undefined"
    scale, digits = (100, 1) if metric.startswith(("dice", "jaccard", "nsd")) else (1, 2)
    mean, low, high = (f"{scale * value:.{digits}f}" for value in (summary.mean, summary.low, summary.high))
    return f"{mean} [{low}, {high}]" if summary.n > 1 else mean
