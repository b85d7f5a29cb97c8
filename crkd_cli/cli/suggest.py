"""`crkd suggest`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crkd_cli.cli.bars import progress
from crkd_cli.cli.console import command, info, show
from crkd_cli.cli.options import DataRoot, Device, Json, Quiet, Verbose

if TYPE_CHECKING:
    from crkd_cli.evaluation.suggest import Suggestions
    from crkd_cli.reporting.tables import Table


@command
def suggest(
    name: Annotated[str, typer.Argument(help="A prepared dataset.")],
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            "--checkpoint",
            help="The model, trained on this dataset; repeat the option to average several. RUN "
            "stands for all RUN-seed… of --seeds.",
            rich_help_panel="Model",
        ),
    ],
    count: Annotated[
        int,
        typer.Option("--count", "-n", min=1, help="How many cases.", rich_help_panel="Suggestions"),
    ] = 5,
    data_root: DataRoot = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Name the unlabeled cases whose labels would help most.

    Example: crkd suggest polyps --checkpoint runs/polyps-crkd-20/best.pth

    The cases are uncertain ones that represent many others, of different
    patients, and none of the validation or test part: see docs/labeling.md.

    Label them, add the labels to your folder, and run crkd prepare-data,
    crkd make-splits --keep and crkd train again.
    """
    info("loading PyTorch")
    from crkd_cli.evaluation.suggest import suggest as run
    from crkd_cli.paths import resolve_data_root

    root = resolve_data_root(data_root)
    suggestions = run(name, checkpoint, root, count, info, progress, device)
    if json:
        from json import dumps

        print(dumps(suggestions.tree(), indent=2))
    elif not quiet:
        show(_table(suggestions))
    if not suggestions.labels_exist:
        info("next: label them, add the labels to your folder, and run crkd prepare-data again")


def _table(suggestions: "Suggestions") -> "Table":
    from crkd_cli.errors import pluralize
    from crkd_cli.reporting.tables import Cell, Table

    cases = suggestions.cases
    # Many cases are named like their file: 80 columns are too few for both.
    with_name = any(case.case not in case.file for case in cases)
    rows = []
    for rank, case in enumerate(cases, start=1):
        words = [str(rank), case.case, case.file] if with_name else [str(rank), case.file]
        numbers = [f"{case.uncertainty:.2f}", f"{len(case.represents)}"]
        rows.append([Cell(text) for text in (*words, *numbers)])
    names = ["case", "image file"] if with_name else ["image file"]
    total = pluralize(suggestions.unlabeled, "unlabeled case")
    return Table(
        f"{suggestions.dataset}: label these next, of {total}",
        ["", *names, "uncertainty", "represents"],
        1 + len(names),
        [rows],
        [
            "uncertainty: entropy of the prediction relative to its size",
            "represents: other unlabeled cases that resemble it more than the rest of the list",
        ],
    )
