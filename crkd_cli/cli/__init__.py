"""The command `crkd`. Nothing heavy is imported here: `crkd --help` answers at once."""

from typing import Annotated

import typer

from crkd_cli import __version__
from crkd_cli.cli.compare import compare
from crkd_cli.cli.evaluate import evaluate
from crkd_cli.cli.make_splits import make_splits
from crkd_cli.cli.predict import predict
from crkd_cli.cli.prepare_data import prepare_data
from crkd_cli.cli.train import WithMethods, train

app = typer.Typer(
    name="crkd",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, function in (
    ("prepare-data", prepare_data),
    ("make-splits", make_splits),
    ("train", train),
    ("evaluate", evaluate),
    ("compare", compare),
    ("predict", predict),
):
    app.command(name, cls=WithMethods if function is train else None)(function)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"crkd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Semi-supervised segmentation of medical images: raw scans in, a trained model, honest scores and masks out."""


def main() -> None:
    app()
