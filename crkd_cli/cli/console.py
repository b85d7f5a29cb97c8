"""What a person sees: notices, progress, tables, errors. Plain lines when piped, rich in a terminal."""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

import typer

from crkd_cli.errors import CrkdError

P = ParamSpec("P")
_quiet = False


def say(line: str) -> None:
    """One plain line on stderr, unless --quiet: results go to stdout, what we chose or did goes to stderr."""
    if not _quiet:
        print(line, file=sys.stderr, flush=True)


def command(function: Callable[P, None]) -> Callable[P, None]:
    """A command's frame: sets --quiet, turns errors that a user can mend into one line and the exit code."""

    @wraps(function)
    def framed(*args: P.args, **kwargs: P.kwargs) -> None:
        global _quiet
        _quiet = bool(kwargs.get("quiet"))
        try:
            function(*args, **kwargs)
        except CrkdError as error:
            if kwargs.get("verbose"):
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None
        except MemoryError:
            print("error: not enough memory; use a smaller batch or --set data.frame", file=sys.stderr)
            raise typer.Exit(1) from None

    return framed


@contextmanager
def progress(title: str, total: int | None, unit: str = "it", done: int = 0) -> Iterator[Callable[..., None]]:
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
        TextColumn("{task.description}", table_column=fixed(len(title))), BarColumn(bar_width=20),
        MofNCompleteColumn(table_column=fixed(2 * len(str(total)) + 1)),
        TextColumn("{task.fields[rate]}", table_column=fixed(12)),
        TimeElapsedColumn(table_column=fixed(7)), TextColumn("ETA", table_column=fixed(3)),
        TimeRemainingColumn(table_column=fixed(7)),
        # The note takes what is left of the line.
        TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )  # fmt: skip
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
        say(f"{title} {done:.0f}{of} {unit}, {rate:.1f} {unit}/s{left}{'  ' + shown if shown else ''}")

    yield advance
