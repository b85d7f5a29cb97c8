"""`crkd make-splits`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crkd_cli.cli.console import command, info, plain_text
from crkd_cli.cli.options import DataRoot, Json, Quiet, Verbose, as_typed
from crkd_cli.errors import UsageError

if TYPE_CHECKING:
    from crkd_cli.data.folds import Folds
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
            help="Labeled patients: 4, 5% (of the train patients) or all; with --folds, in each "
            "fold. Default: all (your own data only).",
            metavar="COUNT",
            rich_help_panel="Split",
        ),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            help="Validation part: 4 or 10%. Public datasets without one: taken from the labeled "
            "patients, so that fewer train; default none. Your own data: default 10%. With "
            "--folds: other patients than those of --labeled; default none.",
            metavar="COUNT",
            rich_help_panel="Split",
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            help="Test part, for your own data only: 10 or 20%. Default 20%; with --folds, none.",
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
    folds: Annotated[
        int | None,
        typer.Option(
            "--folds",
            help="Make N folds instead, for cross-validation: each labeled patient is held out by "
            "one of them.",
            metavar="N",
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

    With --folds 5, crkd train --folds trains five models, and each is scored
    on the patients that it has not seen.
    """
    from crkd_cli.data.folds import folds_file, write_folds
    from crkd_cli.data.make_folds import NewFolds, make_folds
    from crkd_cli.data.make_splits import NewSplit, make_split
    from crkd_cli.data.splits import preview, split_file, write_split
    from crkd_cli.data.store import Store
    from crkd_cli.locks import only_writer
    from crkd_cli.paths import resolve_data_root

    if folds is not None and keep is not None:
        raise UsageError("--keep keeps the parts of one split; drop --keep or --folds")
    store = Store(resolve_data_root(data_root) / "prepared" / name)
    new: NewSplit | NewFolds
    with only_writer(store.root):  # preparing a store copies its splits
        if folds is None:
            new = make_split(store, labeled, val, test, seed, present_only, keep)
            file = out or split_file(store, labeled or "all")
            write_split(new.split, file)
        else:
            new = make_folds(store, folds, labeled, val, test, seed, present_only)
            file = out or folds_file(store, labeled or "all")
            write_folds(new.folds, file)
    for note in new.notes:
        info(f"{name}: {note}")
    if new.missing:
        info(
            f"{name}: {len(new.missing)} official cases are not in the store: "
            f"{preview(new.missing)}"
        )
    if json:
        from json import dumps

        tree = _split_tree(new.split) if isinstance(new, NewSplit) else _folds_tree(new.folds)
        print(dumps({**tree, "missing": new.missing, "file": str(file)}, indent=2))
    elif not quiet:
        if isinstance(new, NewSplit):
            _print_split(new.split, store)
        else:
            _print_folds(new.folds, store)
        info(f"written to {file}")
        chosen = {"--split": file} if out else {"--labeled": labeled or "all"}
        options = as_typed({"--dataset": name, **chosen, "--data-root": data_root})
        info(f"next: crkd train{options}{' --folds' if folds else ''}")


def _split_tree(split: "Split") -> dict[str, Any]:
    return {
        "dataset": split.dataset,
        "name": split.name,
        "labeled": split.labeled,
        "unlabeled": split.unlabeled,
        "val": split.val,
        "test": split.test,
    }


def _folds_tree(folds: "Folds") -> dict[str, Any]:
    trees = []
    for number, split in enumerate(folds.splits(), start=1):
        parts = {"labeled": split.labeled, "unlabeled": split.unlabeled, "val": split.val}
        trees.append({"fold": number, "held_out": split.groups_of("fold"), **parts})
    return {"dataset": folds.dataset, "name": folds.name, "folds": trees, "test": folds.test}


def _print_folds(folds: "Folds", store: "Store") -> None:
    from rich.console import Console
    from rich.table import Table

    from crkd_cli.data.splits import preview

    title = plain_text(f"{folds.dataset}: {len(folds.folds)} folds, {folds.name}; in patients")
    table = Table("fold", title=title, title_justify="left")
    for heading in ("labeled", "unlabeled", "val", "held out", "images"):
        table.add_column(heading, justify="right")
    table.add_column("which")
    for number, split in enumerate(folds.splits(), start=1):
        held_out = split.groups_of("fold")
        counts = map(len, (split.labeled, split.unlabeled, split.val, held_out))
        images = len(split.cases(store, "fold"))
        names = plain_text(preview(held_out, 3))
        table.add_row(str(number), *map(str, counts), str(images), names)
    Console().print(table)


def _print_split(split: "Split", store: "Store") -> None:
    from rich.console import Console
    from rich.table import Table

    from crkd_cli.data.splits import Part, preview

    title = plain_text(f"{split.dataset}: split {split.name}")
    table = Table("part", title=title, title_justify="left")
    table.add_column("patients", justify="right")
    table.add_column("images", justify="right")
    table.add_column("which")
    parts: tuple[Part, ...] = ("labeled", "unlabeled", "val", "test")
    for part in parts:
        groups = split.groups_of(part)
        shown = 20 if part == "labeled" else 3
        names = preview(groups, shown if len(groups) <= shown else 3)
        count = len(split.cases(store, part))
        table.add_row(part, str(len(groups)), str(count), plain_text(names))
    Console().print(table)
