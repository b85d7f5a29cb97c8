"""crkd make-splits: which cases train, which of them are labeled, which validate and test."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crkd_cli.cli import console
from crkd_cli.cli.options import DataRoot, Json, Quiet, Verbose

if TYPE_CHECKING:
    from crkd_cli.data.make_splits import NewSplit
    from crkd_cli.data.store import Store


@console.command
def make_splits(
    name: Annotated[
        str,
        typer.Argument(
            help="A prepared data set: acdc, la, isic2018, kvasir, phantom, phantom3d or your own."
        ),
    ],
    labeled: Annotated[
        str | None,
        typer.Option(
            help="Labeled patients: 4, 5% (of the train patients) or all. Default: all (own data only).",
            metavar="COUNT",
            rich_help_panel="Split",
        ),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            help="Validation part: 4 or 10%. Public sets without one: of the labeled cases, "
            "which then train fewer; default none. Own data: default 10%.",
            metavar="COUNT",
            rich_help_panel="Split",
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            help="Test part, own data only: 10 or 20%. Default 20%.",
            metavar="COUNT",
            rich_help_panel="Split",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Same seed, same split, everywhere.", rich_help_panel="Split")
    ] = 1337,
    present_only: Annotated[
        bool,
        typer.Option(
            "--present-only",
            help="Keep the official cases that the store has, and list what is missing.",
            rich_help_panel="Split",
        ),
    ] = False,
    data_root: DataRoot = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write here instead, for: crkd train --split FILE.",
            metavar="FILE",
            rich_help_panel="Output",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Choose the split that `crkd train` uses: the official one, or a new one by patient.

    Example: crkd make-splits la --labeled 4

    In your own data every image is a patient unless patients.csv says otherwise: see docs/own-data.md.

    The split is written to prepared/NAME/splits/COUNT.yaml. Training takes the last one made for its --labeled COUNT.
    """
    from crkd_cli.data.make_splits import make_split
    from crkd_cli.data.splits import preview, split_file, write_split
    from crkd_cli.data.store import Store
    from crkd_cli.paths import data_root as root_of

    store = Store(root_of(data_root) / "prepared" / name)
    made = make_split(store, labeled, val, test, seed, present_only)
    file = out or split_file(store, labeled or "all")
    write_split(made.split, file)
    for note in made.notes:
        console.info(f"{name}: {note}")
    if made.missing:
        console.info(
            f"{name}: {len(made.missing)} official cases are not in the store: {preview(made.missing)}"
        )
    if json:
        import json as codec

        print(codec.dumps(_tree(made, file), indent=2))
    elif not quiet:
        _table(made, store)
        console.info(f"written to {file}")
        option = f"--split {file}" if out else f"--labeled {labeled or 'all'}"
        console.info(f"next: crkd train --dataset {name} {option}")


def _tree(made: "NewSplit", file: Path) -> dict[str, Any]:
    split = made.split
    return {
        "dataset": split.dataset,
        "name": split.name,
        "labeled": split.labeled,
        "unlabeled": split.unlabeled,
        "val": split.val,
        "test": split.test,
        "missing": made.missing,
        "file": str(file),
    }


def _table(made: "NewSplit", store: "Store") -> None:
    from typing import get_args

    from rich.console import Console
    from rich.table import Table

    from crkd_cli.data.splits import Part, preview

    split = made.split
    table = Table("part", title=f"{split.dataset}: split {split.name}", title_justify="left")
    table.add_column("patients", justify="right")
    table.add_column("images", justify="right")
    table.add_column("which")
    for part in get_args(Part):
        groups = getattr(split, part)
        which = ", ".join(groups) if part == "labeled" and len(groups) <= 20 else preview(groups, 3)
        table.add_row(part, str(len(groups)), str(len(split.cases(store, part))), which)
    Console().print(table)
