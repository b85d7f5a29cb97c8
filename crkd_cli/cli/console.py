"""What the user sees: messages, progress, tables, errors; plain when piped, rich in a terminal."""

import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, ParamSpec

import typer

from crkd_cli.cli.streams import final_exit_code
from crkd_cli.errors import CrkdError, is_out_of_memory
from crkd_cli.text import printable

if TYPE_CHECKING:
    from rich.progress import ProgressColumn
    from rich.text import Text

    from crkd_cli.reporting.tables import Cell, Table

P = ParamSpec("P")
WIDE_TERMINAL = 100  # columns that a comparison with a few classes needs
PIPED_COLUMNS = 160  # at least; no table is cut off
SECONDS_BETWEEN_LINES = 10  # of progress when piped
PROGRESS_LINE = re.compile(r"training (\d+)/(\d+) steps, (.*)")  # as _progress_lines writes it
_quiet = False


def info(line: str) -> None:
    """Print a line to stderr unless --quiet; results alone go to stdout."""
    if not _quiet:
        _print_to_stderr(line)


def warn(line: str) -> None:
    """Print a line to stderr even with --quiet."""
    _print_to_stderr(line)


def _print_to_stderr(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


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
            lines = [f"error: {error}", *(f"  {detail}" for detail in error.details)]
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


@contextmanager
def progress(
    title: str, total: int | None, unit: str = "it", done: int = 0
) -> Iterator[Callable[..., None]]:
    """Show a bar with rate and ETA in a terminal, a line every ten seconds when piped.

    Yields advance(amount=1, note=None), where `note` is shown beside the bar. `done` of `total`
    are done already.
    """
    if _quiet:
        yield lambda amount=1, note=None: None
    elif sys.stderr.isatty():
        yield from _progress_bar(title, total, unit, done)
    else:
        yield from _progress_lines(title, total, unit, done)


@contextmanager
def run_output(names: Iterable[str]) -> Iterator[Callable[[str, str | None], None]]:
    """Show the lines of the named runs; in a terminal, a bar for each that is being trained.

    Yields show(name, line), where `line` is one that the run prints when piped, or None once it
    has ended.
    """
    if _quiet or not sys.stderr.isatty():
        yield _show_line
    else:
        yield from _run_bars(names)


def _show_line(name: str, line: str | None) -> None:
    if line is not None:
        _print_to_stderr(f"{name}: {line}")


def _run_bars(names: Iterable[str]) -> Iterator[Callable[[str, str | None], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    note = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False, table_column=note),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True) as bars:
        tasks = {name: bars.add_task(name, total=None, visible=False, note="") for name in names}

        def show(name: str, line: str | None) -> None:
            bars.update(tasks[name], visible=line is not None)
            if progress := PROGRESS_LINE.match(line or ""):
                done, total, rest = progress.groups()
                bars.update(
                    tasks[name], completed=int(done), total=int(total), note=printable(rest)
                )
            else:
                _show_line(name, line)

        yield show


def _progress_bar(
    title: str, total: int | None, unit: str, done: int
) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import Progress

    columns = _progress_columns(title, total)
    with Progress(*columns, console=Console(stderr=True), expand=True) as bar:
        task = bar.add_task(printable(title), total=total, completed=done, rate="", note="")

        def advance(amount: int = 1, note: str | None = None) -> None:
            bar.advance(task, amount)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.1f} {unit}/s" if speed else "")
            if note is not None:
                bar.update(task, note=printable(note))

        yield advance


def _progress_columns(title: str, total: int | None) -> list["ProgressColumn"]:
    """Return the columns of the bar; all but the note have a fixed width, so that nothing jumps."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    def fixed(width: int) -> Column:
        return Column(min_width=width, no_wrap=True)

    note = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # takes the rest of the line
    return [
        TextColumn("{task.description}", markup=False, table_column=fixed(len(title))),
        BarColumn(bar_width=20),
        MofNCompleteColumn(table_column=fixed(2 * len(str(total)) + 1)),
        TextColumn("{task.fields[rate]}", markup=False, table_column=fixed(12)),
        TimeElapsedColumn(table_column=fixed(7)),
        TextColumn("ETA", table_column=fixed(3)),
        TimeRemainingColumn(table_column=fixed(7)),
        TextColumn("{task.fields[note]}", markup=False, table_column=note),
    ]


def _progress_lines(
    title: str, total: int | None, unit: str, done: int
) -> Iterator[Callable[..., None]]:
    start = last_line = time.monotonic()
    done_before = done
    current_note = ""

    def advance(amount: int = 1, note: str | None = None) -> None:
        nonlocal done, last_line, current_note
        done += amount
        if note is not None:
            current_note = note
        now = time.monotonic()
        if now - last_line < SECONDS_BETWEEN_LINES and done != total:
            return
        last_line = now
        rate = (done - done_before) / max(now - start, 1e-9)
        line = f"{title} {done:.0f}{f'/{total}' if total else ''} {unit}, {rate:.1f} {unit}/s"
        if total and rate:
            line += f", {(total - done) / rate:.0f} s left"
        if current_note:
            line += f"  {current_note}"
        info(line)

    yield advance
