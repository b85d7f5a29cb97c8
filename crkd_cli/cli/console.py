"""What a person sees: notices, progress, tables, errors. Plain lines when piped, rich in a terminal."""

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, NoReturn, ParamSpec

import typer

from crkd_cli.errors import CrkdError, is_out_of_memory

if TYPE_CHECKING:
    from crkd_cli.reporting.tables import Table

P = ParamSpec("P")
_quiet = False


def info(line: str) -> None:
    """One plain line on stderr, unless --quiet: results go to stdout, what we chose or did goes to stderr."""
    if not _quiet:
        _tell(line)


def warn(line: str) -> None:
    """One plain line on stderr, with --quiet too; of several processes the first one speaks."""
    _tell(line)


def _tell(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:  # nobody reads any more: that is no reason to lose the work
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def narrow() -> bool:
    """Whether the terminal has fewer than the hundred columns that a table of a few classes takes."""
    return sys.stdout.isatty() and shutil.get_terminal_size().columns < 100


def show(table: "Table") -> None:
    """A table on stdout, the best values bold in a terminal; 160 columns when piped, so that nothing is cut off."""
    from rich.console import Console
    from rich.table import Table as Rich
    from rich.text import Text

    caption = Text("\n".join(table.notes))
    rich = Rich(
        title=Text(table.title),
        caption=caption,
        show_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    for i, name in enumerate(table.headings):
        if i < table.words:  # which wrap where there is little room, before a number is cut off
            rich.add_column(Text(name), overflow="fold", min_width=len(name))
        else:
            rich.add_column(Text(name), justify="right", no_wrap=True)
    for section in table.sections:
        above = ""
        for first, *others in section:
            texts = [first._replace(text="") if first.text == above else first, *others]
            rich.add_row(*(Text(cell.text, style="bold" if cell.best else "") for cell in texts))
            above = first.text
        if any(len(rows) > 1 for rows in table.sections):
            rich.add_section()
    Console(width=None if sys.stdout.isatty() else 160).print(rich, "")


def command(function: Callable[P, None]) -> Callable[P, None]:
    """A command's frame: sets --quiet, turns errors that a user can mend into one line and the exit code.

    Where torchrun has started several processes, they are joined; the first one speaks, and an error is told once.
    """

    @wraps(function)
    def framed(*args: P.args, **kwargs: P.kwargs) -> None:
        global _quiet
        several = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
        _quiet = bool(kwargs.get("quiet")) or (several and os.environ.get("RANK") != "0")
        try:
            if several:
                _together(function, *args, **kwargs)
            else:
                function(*args, **kwargs)
        except CrkdError as error:
            _end(f"error: {error}", error.exit_code, several, bool(kwargs.get("verbose")))
        except KeyboardInterrupt:
            _end("interrupted", 130, several)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            why = "error: not enough memory; free some, or train with a smaller data.frame or batch (--set)"
            _end(why, 1, several, bool(kwargs.get("verbose")))

    return framed


def _together(function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> NoReturn:
    """Runs `function` in this process of several, and ends the process."""
    # torch's own warnings would come from every process: that all parameters are in use, say, although some may not be.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from crkd_cli.runtime.distributed import exit_process, process_group

    with process_group():
        function(*args, **kwargs)
    exit_process(0)


def _end(line: str, code: int, several: bool, trace: bool = False) -> NoReturn:
    """Says why the command ends, with `trace` also from where in the code, and ends it."""
    lines = f"{traceback.format_exc().rstrip()}\n{line}" if trace else line
    if not several:
        _tell(lines)
        raise typer.Exit(code) from None
    from crkd_cli.runtime.distributed import claim_error_report, exit_process

    if claim_error_report():
        _tell(lines)
    exit_process(code)


@contextmanager
def progress(
    title: str, total: int | None, unit: str = "it", done: int = 0
) -> Iterator[Callable[..., None]]:
    """A progress bar with rate and ETA in a terminal, a plain line about every ten seconds when piped.

    `done` of `total` are done already. Yields advance(amount=1, note=None); `note` stands beside the bar (loss terms, the case).
    """
    if _quiet:
        yield lambda amount=1, note="": None
    elif sys.stderr.isatty():
        yield from _bar(title, total, unit, done)
    else:
        yield from _lines(title, total, unit, done)


def _bar(title: str, total: int | None, unit: str, done: int) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    def fixed(width: int) -> Column:
        return Column(min_width=width, no_wrap=True)

    columns = (
        TextColumn("{task.description}", table_column=fixed(len(title))),
        BarColumn(bar_width=20),
        MofNCompleteColumn(table_column=fixed(2 * len(str(total)) + 1)),
        TextColumn("{task.fields[rate]}", table_column=fixed(12)),
        TimeElapsedColumn(table_column=fixed(7)),
        TextColumn("ETA", table_column=fixed(3)),
        TimeRemainingColumn(table_column=fixed(7)),
        # The note takes what is left of the line.
        TextColumn(
            "{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True) as bar:
        task = bar.add_task(title, total=total, completed=done, rate="", note="")

        def advance(amount: int = 1, note: str | None = None) -> None:
            bar.advance(task, amount)
            speed = bar.tasks[0].speed
            shown = bar.tasks[0].fields["note"] if note is None else note
            bar.update(task, rate=f"{speed:.1f} {unit}/s" if speed else "", note=shown)

        yield advance


def _lines(title: str, total: int | None, unit: str, done: int) -> Iterator[Callable[..., None]]:
    import time

    begin = last = time.monotonic()
    first = done
    shown = ""

    def advance(amount: int = 1, note: str | None = None) -> None:
        nonlocal done, last, shown
        done += amount
        shown = shown if note is None else note
        now = time.monotonic()
        if now - last < 10 and done != total:
            return
        last = now
        rate = (done - first) / max(now - begin, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if total and rate else ""
        of = f"/{total}" if total else ""
        info(
            f"{title} {done:.0f}{of} {unit}, {rate:.1f} {unit}/s{left}{'  ' + shown if shown else ''}"
        )

    yield advance
