"""What the user sees: messages, tables, errors; plain when piped, rich in a terminal."""

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, ParamSpec

import typer

from crkd_cli.cli.streams import final_exit_code
from crkd_cli.errors import CrkdError, is_out_of_memory
from crkd_cli.text import group_similar, printable

if TYPE_CHECKING:
    from rich.text import Text

    from crkd_cli.reporting.tables import Cell, Table

P = ParamSpec("P")
WIDE_TERMINAL = 100  # columns that a comparison with a few classes needs
PIPED_COLUMNS = 160  # at least; no table is cut off
SIMILAR_SHOWN = 3  # messages that differ in names and numbers only
_quiet = False


def info(line: str) -> None:
    """Print a line to stderr unless --quiet; results alone go to stdout."""
    if not _quiet:
        _print_to_stderr(line)


def is_quiet() -> bool:
    """Return whether the command prints warnings, errors and results alone."""
    return _quiet


def warn(line: str) -> None:
    """Print a line to stderr even with --quiet."""
    _print_to_stderr(line)


def _print_to_stderr(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def few_of_each_kind(lines: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return pairs of a name and a message; in a terminal, only the first of similar messages.

    A pair without a name follows them and says how many more there are.
    """
    if not sys.stderr.isatty():
        return list(lines)
    few = []
    for similar in group_similar(lines, text=lambda line: line[1]):
        few += similar[:SIMILAR_SHOWN]
        if hidden := len(similar[SIMILAR_SHOWN:]):
            few.append(("", f"and {hidden} similar; add 2> FILE to write all to a file"))
    return few


def plain_text(text: object) -> "Text":
    """Return `text` for rich, which prints it as it is: names are not markup."""
    from rich.text import Text

    return Text(printable(text))


def narrow(columns: int = WIDE_TERMINAL) -> bool:
    """Return whether stdout is a terminal with fewer than `columns` columns."""
    return sys.stdout.isatty() and shutil.get_terminal_size().columns < columns


def show(table: "Table") -> None:
    """Print a table to stdout, with the best values in bold in a terminal."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    rich_table = RichTable(
        caption=Text("\n").join(map(plain_text, table.notes)),
        show_edge=False,
        pad_edge=False,  # as `table.width` counts
        caption_justify="left",
    )
    for index, name in enumerate(table.headings):
        heading = plain_text(name)
        if index < table.words:  # text wraps before numbers are cut off
            rich_table.add_column(heading, overflow="fold", min_width=len(heading))
        else:
            rich_table.add_column(heading, justify="right", no_wrap=True)
    separate = any(len(rows) > 1 for rows in table.sections)
    for section in table.sections:
        previous = ""
        for first, *others in section:
            label = "" if first.text == previous else first.text
            rich_table.add_row(*map(_rich_cell, [first._replace(text=label), *others]))
            previous = first.text
        if separate:
            rich_table.add_section()
    width = None if sys.stdout.isatty() else max(PIPED_COLUMNS, table.width)
    title = plain_text(table.title)  # a title of the rich table would wrap at its width
    title.stylize("italic")
    Console(width=width).print(title, rich_table, "", sep="\n")


def _rich_cell(cell: "Cell") -> "Text":
    text = plain_text(cell.text)
    text.stylize("bold" if cell.best else "")
    return text


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command: apply --quiet and turn expected errors into one line and an exit code.

    If torchrun started several processes, they form one group; the first one prints, and an error
    is reported once.
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        global _quiet
        distributed = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
        first = not distributed or os.environ.get("RANK") == "0"
        _quiet = bool(kwargs.get("quiet")) or not first
        verbose = bool(kwargs.get("verbose"))
        try:
            _check_current_folder()
            if distributed:
                _run_in_group(function, *args, **kwargs)
            else:
                function(*args, **kwargs)
        except CrkdError as error:
            details = few_of_each_kind(("", detail) for detail in error.details)
            lines = [f"error: {error}", *(f"  {detail}" for _, detail in details)]
            _exit(lines, error.exit_code, distributed, verbose)
        except KeyboardInterrupt:
            _exit(["interrupted"], 130, distributed)
        except OSError as error:  # such as a current folder that was deleted
            where = f"{error.filename}: " if error.filename is not None else ""
            _exit([f"error: {where}{error.strerror or error}"], 1, distributed, verbose)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            line = (
                "error: not enough memory; free some, or train with a smaller data.frame or batch "
                "(--set)"
            )
            _exit([line], 1, distributed, verbose)
        finally:
            _quiet = False  # the process may run other commands

    return wrapper


def _check_current_folder() -> None:
    try:
        Path.cwd()
    except OSError:
        raise CrkdError("the current folder no longer exists; change to another one") from None


def _run_in_group(function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> NoReturn:
    """Run `function` in this process of several, then end the process."""
    # torch would print its warnings once per process.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from crkd_cli.runtime.distributed import exit_process, process_group

    with process_group():
        function(*args, **kwargs)
    exit_process(final_exit_code(0))


def _exit(lines: list[str], code: int, distributed: bool, verbose: bool = False) -> NoReturn:
    """Print why the command ends, after a traceback if `verbose`, and end it."""
    if verbose:
        lines = [*traceback.format_exc().splitlines(), *lines]
    if not distributed:
        _print_lines(lines)
        raise typer.Exit(code) from None
    from crkd_cli.runtime.distributed import claim_error_report, exit_process

    if claim_error_report():
        _print_lines(lines)
    exit_process(code)


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        _print_to_stderr(line)
