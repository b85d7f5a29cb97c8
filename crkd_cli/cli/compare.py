"""`crkd compare`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from crkd_cli.cli.console import command, info, narrow, progress, show
from crkd_cli.cli.options import DataRoot, Device, Json, Quiet, Verbose
from crkd_cli.errors import UsageError


@command
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, or the evaluation folders in them.",
            show_default=False,
        ),
    ],
    protocol: Annotated[
        Literal["strict", "paper"] | None,
        typer.Option(
            "--protocol",
            help="Which of a run's evaluations. Default: strict.",
            rich_help_panel="Evaluation",
        ),
    ] = None,
    part: Annotated[
        Literal["test", "val"] | None,
        typer.Option(
            "--part",
            help="Which of a run's evaluations. Default: test.",
            rich_help_panel="Evaluation",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Also comparison.md, comparison.json, scores.csv, tests.csv here.",
            rich_help_panel="Output",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            help="Also a page with curves and pictures here: index.html.",
            rich_help_panel="Output",
        ),
    ] = None,
    data_root: DataRoot = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare evaluated runs: means over seeds, intervals over patients, tests between methods, published rows.

    Runs of one method that differ by their seed only are one row. All must have scored the same cases in the same way.

    Example: crkd compare runs/acdc-supervised-3 runs/acdc-crkd-3
    """
    from crkd_cli.evaluation.results import find_evaluation, read_evaluation
    from crkd_cli.paths import create_output_folder
    from crkd_cli.paths import data_root as root_of
    from crkd_cli.reporting.compare import compare_runs
    from crkd_cli.reporting.tables import tables, write_comparison

    if report:
        info("loading PyTorch")
        from crkd_cli.reporting.html import check_requirements, write_report

        check_requirements()
    found = [
        read_evaluation(folder)
        for folder in dict.fromkeys(
            find_evaluation(given, protocol or "strict", part) for given in runs
        )
    ]
    for one in found:  # an evaluation's folder is of whatever it is of
        if (protocol or one.facts.protocol, part or one.facts.part) != (
            one.facts.protocol,
            one.facts.part,
        ):
            raise UsageError(
                f"{one.folder} is of {one.facts.protocol}, {one.facts.part}; give the run folder, or no such option"
            )
    comparison = compare_runs(found)
    if out:
        create_output_folder(out, "--out")
        write_comparison(comparison, out)
    page = (
        write_report(comparison, report, root_of(data_root), info, progress, device)
        if report
        else None
    )
    if json:
        from json import dumps

        print(dumps(comparison.tree(), indent=2))
    elif not quiet:
        for table in tables(comparison, classes=0 if narrow() else 4):
            show(table)
    if out:
        info(f"written: {out / 'comparison.md'}, comparison.json, scores.csv, tests.csv")
    if page:
        info(f"written: {page}")
