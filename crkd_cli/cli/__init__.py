"""The command `crkd`. Nothing heavy is imported here, so that `crkd --help` answers at once."""

import os
import re
import sys
from typing import Annotated

import typer

from crkd_cli import __version__
from crkd_cli.cli.compare import compare
from crkd_cli.cli.evaluate import evaluate
from crkd_cli.cli.make_splits import make_splits
from crkd_cli.cli.predict import predict
from crkd_cli.cli.prepare_data import prepare_data
from crkd_cli.cli.streams import final_exit_code, protect_streams
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
    protect_streams()
    for variable in ("COLUMNS", "TERMINAL_WIDTH"):
        if not re.fullmatch("0*[1-9][0-9]{0,5}", os.environ.get(variable, "")):
            os.environ.pop(variable, None)  # rich and typer fail at other text, or print nothing
    os.environ["MPLBACKEND"] = "agg"  # figures are only written to files
    try:
        app()
    except SystemExit as end:
        sys.exit(final_exit_code(end.code) if isinstance(end.code, int) else end.code)
