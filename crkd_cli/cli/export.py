"""`crkd export`."""

from pathlib import Path
from typing import Annotated

import typer

from crkd_cli.cli.console import command, info
from crkd_cli.cli.options import Quiet, Verbose


@command
def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="A best.pth or last.pth from crkd train, or a run folder."
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL.onnx", help="Default: the checkpoint's name with .onnx."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace existing files.", rich_help_panel="Output"),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a trained network as ONNX, to predict without crkd.

    Example: crkd export runs/la-crkd-4/last.pth model.onnx

    Beside it, MODEL.json describes the input (channels, normalization, size)
    and the classes. The file is compared with the checkpoint before it is kept.
    """
    info("loading PyTorch")
    from crkd_cli.inference.export import export as run
    from crkd_cli.runtime.checkpoint import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    result = run(loaded, model or loaded.path.with_suffix(".onnx"), overwrite=overwrite)
    info(f"largest difference from the checkpoint's logits: {result.difference:.2g}")
    info(f"written: {result.model} and {result.description}")
