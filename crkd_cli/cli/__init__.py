"""The command `crkd`. Nothing heavy is imported here: `crkd --help` answers at once."""

from typing import Annotated

import typer

from crkd_cli import __version__
from crkd_cli.cli import evaluate, make_splits, predict, prepare_data, train

app = typer.Typer(
    name="crkd",
    help="Semi-supervised segmentation of medical images: raw scans in, a trained model, honest scores and masks out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("prepare-data")(prepare_data.prepare_data)
app.command("make-splits")(make_splits.make_splits)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"crkd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Semi-supervised segmentation of medical images: raw scans in, a trained model, honest scores and masks out."""


def main() -> None:
    app()
