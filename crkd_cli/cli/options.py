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
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="auto, cpu, cuda or cuda:N. Default: auto.", rich_help_panel="Hardware"
    ),
]
