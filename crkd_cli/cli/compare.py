"""`crkd compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from crkd_cli.cli.bars import progress
from crkd_cli.cli.console import command, info, narrow, show
from crkd_cli.cli.options import DataRoot, Device, Json, Quiet, Verbose
from crkd_cli.errors import UsageError

if TYPE_CHECKING:
    from crkd_cli.evaluation.results import Evaluation


@command
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Run folders, folders of folds, or evaluation folders in them.",
            show_default=False,
        ),
    ],
    protocol: Annotated[
        Literal["strict", "paper"] | None,
        typer.Option(
            "--protocol",
            help="Protocol of the evaluations to compare. Default: strict.",
            rich_help_panel="Evaluation",
        ),
    ] = None,
    part: Annotated[
        Literal["test", "val", "fold"] | None,
        typer.Option(
            "--part",
            help="Part of the split that was scored. Default: fold for folds, else test.",
            rich_help_panel="Evaluation",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Also write comparison.md, comparison.json, scores.csv and tests.csv here.",
            rich_help_panel="Output",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            help="Also write an HTML page with curves and pictures here (index.html).",
            rich_help_panel="Output",
        ),
    ] = None,
    data_root: DataRoot = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare evaluated runs with each other and published scores.

    Example: crkd compare runs/acdc-supervised-3 runs/acdc-crkd-3

    Prints means over seeds, intervals and paired tests. Runs of a method that
    differ only in their seed form one row. All runs must have been evaluated
    on the same cases in the same way.
    """
    from crkd_cli.evaluation.results import find_evaluation, read_evaluation
    from crkd_cli.paths import output_folder, resolve_data_root
    from crkd_cli.reporting.compare import compare_runs
    from crkd_cli.reporting.tables import tables, write_comparison

    if report:
        info("loading PyTorch")
        from crkd_cli.reporting.html import write_report

    folders = [find_evaluation(path, protocol or "strict", part) for path in runs]
    evaluations = [read_evaluation(folder) for folder in dict.fromkeys(folders)]
    for evaluation in evaluations:
        _check_kind(evaluation, protocol, part)
    comparison = compare_runs(evaluations)
    if out:
        with output_folder(out, "--out"):
            write_comparison(comparison, out)
    page = None
    if report:
        root = resolve_data_root(data_root)
        page = write_report(comparison, report, root, info, progress, device)
    if json:
        from json import dumps

        print(dumps(comparison.tree(), indent=2))
    elif not quiet:
        for table in tables(comparison, max_classes=0 if narrow() else 4):
            show(table)
    if out:
        info(f"written: {out / 'comparison.md'}, comparison.json, scores.csv, tests.csv")
    if page:
        info(f"written: {page}")


def _check_kind(evaluation: "Evaluation", protocol: str | None, part: str | None) -> None:
    """Raise UsageError if an evaluation folder was given with options that contradict it."""
    facts = evaluation.facts
    if protocol not in (None, facts.protocol) or part not in (None, facts.part):
        raise UsageError(
            f"{evaluation.folder} is a {facts.protocol}/{facts.part} evaluation; "
            "drop --protocol/--part"
        )
