"""The command `crkd`. Nothing heavy is imported here, so that `crkd --help` answers at once."""

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
app.command("prepare-data")(prepare_data)
app.command("make-splits")(make_splits)
app.command("train", cls=WithMethods)(train)
app.command("evaluate")(evaluate)
app.command("compare")(compare)
app.command("predict")(predict)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"crkd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Segment medical images from few labels: raw scans in, a model, scores and masks out."""


def main() -> None:
    """Run the command line."""
    app()
