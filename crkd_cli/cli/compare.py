"""`crkd compare`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from crkd_cli.cli.console import command, say, show
from crkd_cli.cli.options import Json, Quiet, Verbose


@command
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or the evaluation folders in them.", show_default=False)
    ],
    protocol: Annotated[
        Literal["strict", "paper"],
        typer.Option("--protocol", help="Which of a run's evaluations.", rich_help_panel="Evaluation"),
    ] = "strict",
    part: Annotated[
        Literal["test", "val"] | None,
        typer.Option("--part", help="Which of a run's evaluations. Default: test.", rich_help_panel="Evaluation"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Also comparison.md, comparison.json, scores.csv, tests.csv here.", rich_help_panel="Output"),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare evaluated runs: means over seeds, intervals over patients, tests between methods, published rows.

    Runs of one method that differ by their seed only are one row. All must have scored the same cases in the same way.

    Example: crkd compare runs/acdc-supervised-3 runs/acdc-crkd-3
    """
    from crkd_cli.engine.compare import compare as run
    from crkd_cli.engine.evaluation import find, read
    from crkd_cli.engine.tables import tables, write
    from crkd_cli.paths import make_folder

    comparison = run([read(folder) for folder in dict.fromkeys(find(given, protocol, part) for given in runs)])
    if out:
        make_folder(out, "--out")
        write(comparison, out)
    if json:
        from json import dumps

        print(dumps(comparison.tree(), indent=2))
    elif not quiet:
        for table in tables(comparison, classes=4):
            show(table)
    if out:
        say(f"written: {out / 'comparison.md'}, comparison.json, scores.csv, tests.csv")
