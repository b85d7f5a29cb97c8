"""The progress of long work: a bar in a terminal, lines when piped."""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crkd_cli.cli.console import info, is_quiet, warn
from crkd_cli.text import format_duration, printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, ProgressColumn

# A piped line is due after each twentieth of the work, but not at once after another, and not long
# after it either.
PARTS = 20
MIN_SECONDS, MAX_SECONDS = 10, 600  # between two lines
PROGRESS_LINE = re.compile(r"training (\d+)/(\d+) steps, (.*)")  # as _lines writes it


class LineSchedule:
    """Decides when a line is due that reports progress.

    Args:
        done: What is done already.
        total: Of all work; None: unknown.
        often: Whether a line is due every ten seconds, and not only after each twentieth.
    """

    def __init__(self, done: float, total: float | None, *, often: bool = False) -> None:
        self._total, self._often = total, often
        self._last, self._last_time = done, time.monotonic()

    def due(self, done: float) -> bool:
        """Return whether to write a line now; it is always due at the end."""
        now = time.monotonic()
        waited = now - self._last_time
        is_due = done == self._total or waited >= MAX_SECONDS
        if waited >= MIN_SECONDS:
            is_due = is_due or self._part(done) > self._part(self._last)
        if is_due:
            self._last, self._last_time = done, now
        return is_due

    def _part(self, done: float) -> float:
        if self._often or not self._total:
            return done
        return done * PARTS // self._total


@contextmanager
def progress(
    title: str, total: int | None, unit: str = "it", done: int = 0, *, often: bool = False
) -> Iterator[Callable[..., None]]:
    """Show a bar with rate and remaining time in a terminal, some lines when piped.

    Yields advance(amount=1, note=None), where `note` is shown below the bar. `done` of `total`
    are done already. With `often`, a line is written every ten seconds.
    """
    if is_quiet():
        yield lambda amount=1, note=None: None
    elif sys.stderr.isatty():
        yield from _bar(title, total, unit, done)
    else:
        yield from _lines(title, total, unit, done, often)


@contextmanager
def run_output(names: Iterable[str]) -> Iterator[Callable[[str, str | None], None]]:
    """Show the lines of the named runs; in a terminal, a bar for each that is being trained.

    Yields show(name, line), where `line` is one that the run prints when piped, or None once it
    has ended.
    """
    if is_quiet() or not sys.stderr.isatty():
        yield _PipedRuns().show
    else:
        yield from _run_bars(names)


class _PipedRuns:
    """Writes the lines of several runs, and of their progress those that are due."""

    def __init__(self) -> None:
        self._schedules: dict[str, LineSchedule] = {}

    def show(self, name: str, line: str | None) -> None:
        progress = PROGRESS_LINE.match(line or "")
        if progress:
            done, total = int(progress[1]), int(progress[2])
            schedule = self._schedules.setdefault(name, LineSchedule(done, total))
            if not schedule.due(done):
                return
        _show_line(name, line)


def _show_line(name: str, line: str | None) -> None:
    if line is not None:
        warn(f"{name}: {line}")


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


def _bar(title: str, total: int | None, unit: str, done: int) -> Iterator[Callable[..., None]]:
    with _bar_with_note(title, total) as bar:
        task = bar.add_task(printable(title), total=total, completed=done, rate="", note="")

        def advance(amount: int = 1, note: str | None = None) -> None:
            bar.advance(task, amount)
            bar.update(task, rate=_format_rate(bar.tasks[0].speed, unit))
            if note is not None:
                bar.update(task, note=printable(note))

        yield advance


def _bar_with_note(title: str, total: int | None) -> "Progress":
    """Return a bar whose note has a line to itself, as 80 columns are filled by the bar."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.text import Text

    class BarWithNote(Progress):
        def get_renderables(self) -> "Iterable[RenderableType]":
            yield from super().get_renderables()
            for task in self.tasks:
                if task.fields["note"]:
                    yield Text(task.fields["note"], no_wrap=True, overflow="ellipsis")

    return BarWithNote(*_columns(title, total), console=Console(stderr=True), expand=True)


def _columns(title: str, total: int | None) -> list["ProgressColumn"]:
    """Return the columns of the bar, all with a fixed width, so that nothing jumps."""
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

    return [
        TextColumn("{task.description}", markup=False, table_column=fixed(len(title))),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),  # takes the rest of the line
        MofNCompleteColumn(table_column=fixed(2 * len(str(total)) + 1)),
        TextColumn("{task.fields[rate]}", markup=False, table_column=fixed(12)),
        TimeElapsedColumn(table_column=fixed(7)),
        TextColumn("ETA", table_column=fixed(3)),
        TimeRemainingColumn(table_column=fixed(7)),
    ]


def _lines(
    title: str, total: int | None, unit: str, done: int, often: bool
) -> Iterator[Callable[..., None]]:
    start, done_before = time.monotonic(), done
    schedule = LineSchedule(done, total, often=often)
    current_note = ""

    def advance(amount: int = 1, note: str | None = None) -> None:
        nonlocal done, current_note
        done += amount
        if note is not None:
            current_note = note
        if not schedule.due(done):
            return
        rate = (done - done_before) / max(time.monotonic() - start, 1e-9)
        line = f"{title} {done:.0f}{f'/{total}' if total else ''} {unit}"
        if rate:
            line += f", {_format_rate(rate, unit)}"
        if total and rate:
            line += f", {format_duration((total - done) / rate)} left"
        if current_note:
            line += f"  {current_note}"
        info(line)

    yield advance


def _format_rate(rate: float | None, unit: str) -> str:
    """Return a rate per second as 4.9 steps/s, or a low one as 6.3 s/step."""
    if not rate:
        return ""
    if rate >= 1:
        return f"{rate:.1f} {unit}/s"
    return f"{1 / rate:.1f} s/{unit.removesuffix('s')}"
