"""`crkd make-splits`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crkd_cli.cli.console import command, info, plain_text
from crkd_cli.cli.options import DataRoot, Json, Quiet, Verbose, as_typed

if TYPE_CHECKING:
    from crkd_cli.data.make_splits import NewSplit
    from crkd_cli.data.splits import Split
    from crkd_cli.data.store import Store


@command
def make_splits(
    name: Annotated[
        str,
        typer.Argument(
            help="A prepared dataset: acdc, la, isic2018, kvasir, phantom, phantom3d or your own."
        ),
    ],
    labeled: Annotated[
        str | None,
        typer.Option(
            help="Labeled patients: 4, 5% (of the train patients) or all. "
            "Default: all (your own data only).",
            metavar="COUNT",
            rich_help_panel="Split",
        ),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            help="Validation part: 4 or 10%. Public datasets without one: taken from the labeled "
            "patients, so that fewer train; default none. Your own data: default 10%.",
            metavar="COUNT",
            rich_help_panel="Split",
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            help="Test part, for your own data only: 10 or 20%. Default 20%.",
            metavar="COUNT",
            rich_help_panel="Split",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="After more labels were added: keep the validation and test part of the split "
            "for this label count, or of a file. Newly labeled patients train.",
            metavar="COUNT",
            rich_help_panel="Split",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="The same seed gives the same split on every machine.", rich_help_panel="Split"
        ),
    ] = 1337,
    present_only: Annotated[
        bool,
        typer.Option(
            "--present-only",
            help="Use the official cases that the store has, and list those that are missing.",
            rich_help_panel="Split",
        ),
    ] = False,
    data_root: DataRoot = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the split to this file instead, for: crkd train --split FILE.",
            metavar="FILE",
            rich_help_panel="Output",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Choose which patients to train, validate and test on.

    Example: crkd make-splits la --labeled 4

    Public datasets have official parts; your own data is divided at random.

    In your own data, every image is a patient unless patients.csv says
    otherwise: see docs/own-data.md.

    The split is written to prepared/NAME/splits/COUNT.yaml. Training uses the
    one made last for its --labeled COUNT.
    """
    from crkd_cli.data.make_splits import make_split
    from crkd_cli.data.splits import preview, split_file, write_split
    from crkd_cli.data.store import Store
    from crkd_cli.locks import only_writer
    from crkd_cli.paths import resolve_data_root

    store = Store(resolve_data_root(data_root) / "prepared" / name)
    new = make_split(store, labeled, val, test, seed, present_only, keep)
    file = out or split_file(store, labeled or "all")
    with only_writer(store.root):  # preparing a store copies its splits
        write_split(new.split, file)
    for note in new.notes:
        info(f"{name}: {note}")
    if new.missing:
        info(
            f"{name}: {len(new.missing)} official cases are not in the store: "
            f"{preview(new.missing)}"
        )
    if json:
        from json import dumps

        print(dumps(_tree(new, file), indent=2))
    elif not quiet:
        _print_table(new.split, store)
        info(f"written to {file}")
        chosen = {"--split": file} if out else {"--labeled": labeled or "all"}
        options = as_typed({"--dataset": name, **chosen, "--data-root": data_root})
        info(f"next: crkd train{options}")


def _tree(new: "NewSplit", file: Path) -> dict[str, Any]:
    return {
        "dataset": new.split.dataset,
        "name": new.split.name,
        "labeled": new.split.labeled,
        "unlabeled": new.split.unlabeled,
        "val": new.split.val,
        "test": new.split.test,
        "missing": new.missing,
        "file": str(file),
    }


def _print_table(split: "Split", store: "Store") -> None:
    from typing import get_args

    from rich.console import Console
    from rich.table import Table

    from crkd_cli.data.splits import Part, preview

    title = plain_text(f"{split.dataset}: split {split.name}")
    table = Table("part", title=title, title_justify="left")
    table.add_column("patients", justify="right")
    table.add_column("images", justify="right")
    table.add_column("which")
    for part in get_args(Part):
        groups = getattr(split, part)
        shown = 20 if part == "labeled" else 3
        names = preview(groups, shown if len(groups) <= shown else 3)
        count = len(split.cases(store, part))
        table.add_row(part, str(len(groups)), str(count), plain_text(names))
    Console().print(table)
