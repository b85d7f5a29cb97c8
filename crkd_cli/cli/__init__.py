"""The command `crkd`. Nothing heavy is imported here, so that `crkd --help` answers at once."""

import os
import re
import sys
from collections.abc import Callable
from inspect import cleandoc
from typing import Annotated

import typer

from crkd_cli import __version__
from crkd_cli.cli.compare import compare
from crkd_cli.cli.doctor import doctor
from crkd_cli.cli.evaluate import evaluate
from crkd_cli.cli.export import export
from crkd_cli.cli.make_splits import make_splits
from crkd_cli.cli.methods import methods
from crkd_cli.cli.postprocess import postprocess
from crkd_cli.cli.predict import predict
from crkd_cli.cli.prepare_data import prepare_data
from crkd_cli.cli.streams import final_exit_code, protect_streams
from crkd_cli.cli.suggest import suggest
from crkd_cli.cli.train import train

app = typer.Typer(
    name="crkd",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(function: Callable[..., None]) -> None:
    """Add a command. Its help is readable in a terminal of 24 lines.

    The first two paragraphs of the docstring, a summary and an example, come before the arguments
    and options, and the details after them.
    """
    summary, example, *details = cleandoc(function.__doc__ or "").split("\n\n")
    register = app.command(
        function.__name__.replace("_", "-"),
        help=f"{summary}\n\n{example}",
        epilog="\n\n".join(" ".join(text.split()) for text in details) or None,
    )
    register(function)


for function in (
    doctor,
    prepare_data,
    make_splits,
    methods,
    train,
    evaluate,
    compare,
    postprocess,
    predict,
    suggest,
    export,
):
    _add(function)


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
    """Segment medical images from few labels: scans in, a model and masks out.

    Example: crkd prepare-data my-scans --source FOLDER
    """


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
