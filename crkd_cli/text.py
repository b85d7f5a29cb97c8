"""Make names from users' files safe to print and to write to CSV files.

A file name may contain anything: escape sequences that repaint a terminal, line breaks that look
like another message, characters that reverse the reading direction, formulas that a spreadsheet
runs.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import ceil
from typing import TypeVar

T = TypeVar("T")

# What a spreadsheet takes for a formula, after the apostrophes that `csv_cell` adds.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
# The words that differ between messages of one kind: file names, paths, numbers.
_SPECIFIC = re.compile(r"\S*[\d/\\.]\S*")


def printable(text: object) -> str:
    r"""Return `text` with every character that is not printable as its escape, such as \x1b.

    This covers control and formatting characters, line breaks, lone surrogates (bytes of a file
    name that are not UTF-8) and unassigned code points. Letters of all scripts stay.
    """
    characters = str(text)
    if characters.isprintable():
        return characters
    return "".join(char if char.isprintable() else _escape(char) for char in characters)


def channel_title(name: str) -> str:
    """Return "channel T1", or "channel 1" for a channel with that name."""
    title = name if name.startswith("channel ") else f"channel {name}"
    return printable(title)


def unicode_path(path: object) -> str:
    """Return a path as text that every file can hold; bytes that are not UTF-8 become escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def shorten(text: str, length: int = 100) -> str:
    """Return `text` in one line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def group_similar(items: Iterable[T], text: Callable[[T], str]) -> list[list[T]]:
    """Group items whose `text` is equal but for file names and numbers, in order of appearance."""
    groups: dict[str, list[T]] = defaultdict(list)
    for item in items:
        groups[_SPECIFIC.sub("", text(item))].append(item)
    return list(groups.values())


def format_size(numbers: Iterable[float]) -> str:
    """Return a number per axis as text, such as 32 × 48 × 32."""
    return " × ".join(f"{number:.4g}" for number in numbers)


def format_range(numbers: Sequence[int]) -> str:
    """Return "4", or "16 to 17" if the numbers differ."""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def format_duration(seconds: float) -> str:
    """Return a duration, rounded up, as 40 s, 12 min, 1 h 20 min or 19 h."""
    if seconds <= 59:
        return f"{ceil(seconds)} s"
    minutes = ceil(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 10:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours + (minutes > 0)} h"


def csv_cell(value: object) -> object:
    """Return `value` as a cell that no spreadsheet runs as a formula; numbers are not changed.

    A text that looks like a formula gets an apostrophe, which `csv_text` removes.
    """
    if isinstance(value, str) and _FORMULA.match(value):
        return f"'{value}"
    return value


def csv_text(cell: str) -> str:
    """Return the text that `csv_cell` turned into `cell`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
