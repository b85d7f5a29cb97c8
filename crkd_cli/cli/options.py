"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        help="Folder with raw/ and prepared/. Default: $CRKD_DATA, else ./data.",
        rich_help_panel="Data",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print only warnings and errors.", rich_help_panel="Output"),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON to stdout.", rich_help_panel="Output"),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show a traceback with errors.", rich_help_panel="Output"),
]
Tta = Annotated[
    bool,
    typer.Option(
        "--tta",
        help="Test-time mirroring: average the predictions for flipped images. Takes up to 4 times "
        "as long in 2D, 8 times in 3D.",
        rich_help_panel="Model",
    ),
]
Raw = Annotated[
    bool,
    typer.Option(
        "--raw",
        help="Leave off the post-processing that crkd postprocess stored in the checkpoint.",
        rich_help_panel="Model",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="auto, cpu, cuda or cuda:N. Default: auto.", rich_help_panel="Hardware"
    ),
]


def given_options(context: typer.Context, *without: str) -> list[str]:
    """Return the options of the running command as words that another command line can repeat."""
    words: list[str] = []
    for parameter in context.command.params:
        option, value = parameter.opts[0], context.params[parameter.name or ""]
        if option in without or not value:
            continue
        if value is True:
            words.append(option)
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"{option}={value}" for value in values]
    return words


def as_typed(options: dict[str, Path | str | None]) -> str:
    """Return the options that have a value as they are typed in a shell, each after a space."""
    import shlex

    return "".join(
        f" {option} {shlex.quote(str(value))}"
        for option, value in options.items()
        if value is not None
    )
