"""`crkd postprocess`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crkd_cli.cli.bars import progress
from crkd_cli.cli.console import command, info, show
from crkd_cli.cli.options import DataRoot, Device, Quiet, Verbose
from crkd_cli.metrics.names import format_values

if TYPE_CHECKING:
    from crkd_cli.evaluation.choose_postprocessing import ClassChoice
    from crkd_cli.reporting.tables import Table


@command
def postprocess(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A best.pth or last.pth from crkd train, or a run folder; RUN stands for all "
            "RUN-seed…, and a folder of folds for all folds.",
        ),
    ],
    data_root: DataRoot = None,
    device: Device = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Choose post-processing on the validation cases.

    Example: crkd postprocess runs/hearts-crkd-5/best.pth

    For each class: which small components are removed, and whether holes are
    filled. A rule is kept only where it raises the Dice of the validation cases.
    The rules are stored in the checkpoint. crkd predict and crkd evaluate follow
    them; --raw leaves them off.
    """
    info("loading PyTorch")
    from crkd_cli.evaluation.choose_postprocessing import choose_postprocessing
    from crkd_cli.paths import resolve_data_root
    from crkd_cli.runtime.run_folder import find_checkpoints

    root = resolve_data_root(data_root)
    for file in find_checkpoints(checkpoint):
        path, choices = choose_postprocessing(file, root, info, progress, device)
        if not quiet:
            show(_table(choices))
        info(f"written: {path}")


def _table(choices: Sequence["ClassChoice"]) -> "Table":
    from crkd_cli.reporting.tables import Cell, Table

    rows = []
    for choice in choices:
        texts = (choice.name, str(choice.rule), *format_values("dice", choice.before, choice.after))
        rows.append([Cell(text) for text in texts])
    headings = ["class", "post-processing", "Dice % before", "after"]
    return Table("validation cases", headings, 2, [rows], [])
