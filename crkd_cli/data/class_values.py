"""The values of classes in label files, as a description states them: numbers or colors."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

from crkd_cli.data.raw.colors import format_color, is_color, parse_color

LabelValue = int | str  # a number, or a color in pictures, such as "#ff0000"
Stated = Mapping[str, LabelValue | tuple[LabelValue, ...]]  # by the name of the class
Numbers = dict[str, int | tuple[int, ...]]


def values_by_class(classes: Stated) -> Numbers:
    """Return the label values of every class; if they are colors, 1, 2, … in their order."""
    if not _are_colors(classes):
        return cast("Numbers", dict(classes))
    names = [name for name in classes if name != "background"]
    return {name: value for value, name in enumerate(names, start=1)}


def value_by_color(classes: Stated) -> dict[int, int]:
    """Return the label value of every color (0xRRGGBB); empty if the classes are numbers."""
    if not _are_colors(classes):
        return {}
    values = cast("dict[str, int]", values_by_class(classes))
    by_color = {0: 0}  # black
    for name, members in _members(classes).items():
        by_color |= {parse_color(str(color)): values.get(name, 0) for color in members}
    return by_color


def check_classes(classes: Stated | None, ignore: LabelValue | None) -> None:
    """Raise ValueError unless every value has one meaning, and all are numbers or all colors."""
    if classes is None:
        if isinstance(ignore, str):
            raise ValueError("ignore is a color, so list the classes with their colors, too")
        return
    if not classes:
        raise ValueError("classes is empty; name one, or drop the line")
    for name, members in _members(classes).items():
        if not name.strip():
            raise ValueError("classes contains an empty name; name the class")
        if not members:
            raise ValueError(
                f"classes.{name} has no value; give one, such as 1 or '#ff0000' in quotes"
            )
    show: Callable[[int], str] = format_color if _are_colors(classes) else str
    values = [
        (_as_number(member, f"classes.{name}", classes), name)
        for name, members in _members(classes).items()
        for member in members
    ]
    ignored = None if ignore is None else _as_number(ignore, "ignore", classes)
    _check_meanings(values, ignored, show)


def convert_numbers(value: Any) -> Any:
    """Convert numbers that are written as text, alone or in a list."""
    if isinstance(value, list):
        return [convert_numbers(member) for member in value]
    is_number = isinstance(value, str) and re.fullmatch(r"-?\d+", value)
    return int(value) if is_number else value


def _check_meanings(
    values: list[tuple[int, str]], ignored: int | None, show: Callable[[int], str]
) -> None:
    """Raise ValueError if a value has two meanings; `values` are pairs with the class."""
    counts = Counter(value for value, _ in values)
    for value, name in values:
        if value == 0 and name != "background":
            raise ValueError(f"classes.{name} is {show(0)}, the background; give another value")
        if value == ignored:
            raise ValueError(
                f"classes.{name} is {show(value)}, the value of ignore; drop one of them"
            )
        if counts[value] > 1:
            names = [other for member, other in values if member == value]
            raise ValueError(
                f"classes: the value {show(value)} belongs to {' and '.join(names)}; "
                "give every value to one class"
            )


def _members(classes: Stated) -> dict[str, tuple[LabelValue, ...]]:
    """Return the values of every class as a tuple."""
    return {
        name: given if isinstance(given, tuple) else (given,) for name, given in classes.items()
    }


def _are_colors(classes: Stated) -> bool:
    return any(
        isinstance(value, str) for members in _members(classes).values() for value in members
    )


def _as_number(value: LabelValue, key: str, classes: Stated) -> int:
    """Return a number, or a color as 0xRRGGBB. Raises ValueError if other values are not alike."""
    if isinstance(value, str) and not is_color(value):
        raise ValueError(
            f"{key} is {value!r}, neither a number nor a color in quotes, such as '#ff0000'"
        )
    if isinstance(value, str) != _are_colors(classes):
        this, others = ("color", "numbers") if isinstance(value, str) else ("number", "colors")
        raise ValueError(f"{key} is a {this}, but other values are {others}; use one kind")
    return parse_color(value) if isinstance(value, str) else value
