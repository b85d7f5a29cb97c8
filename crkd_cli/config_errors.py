"""Messages about wrong keys and values of a configuration, from those of msgspec."""

import re
from collections.abc import Iterator
from typing import Any, get_args

import msgspec

from crkd_cli.errors import did_you_mean, nearest_name
from crkd_cli.text import shorten

# How error messages name msgspec's types.
_TYPE_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "object": "a section",
    "array": "a list",
    "null": "nothing",
}


def explain(message: str, kind: type[Any], section: str) -> tuple[str, str]:
    """Return the key's path and msgspec's `message` in our words, with the nearest valid key."""
    problem, _, at = message.partition(" - at `")
    inner = at.rstrip("`").removeprefix("$").lstrip(".")
    path = ".".join(filter(None, (section, inner)))
    if "Invalid enum value" in problem:
        parent, _, leaf = inner.rpartition(".")
        wrong, allowed = problem.split("'")[1], _choices(field_types(kind, parent)[leaf])
        return path, f"{path} is {wrong!r}; {did_you_mean(wrong, allowed)}"
    if not problem.startswith("Object "):  # neither an unknown nor a missing field
        if bounds := re.match("(Expected `(int|float)`) [<>]", problem):
            problem = f"{bounds[1]} {_range(kind, inner)}"
        if "matching regex" in problem:
            parent, _, leaf = inner.rpartition(".")
            (pattern,) = _metas(field_types(kind, parent)[leaf])
            problem = f"expected {pattern.description}"
        if problem == "Number out of range":  # 1e999, written as text
            problem = "expected a finite number"
        problem = re.sub(r"`([a-z |]+)`", _name_types, problem).replace("Expected", "expected")
        return path, f"{path}: {problem}" if path else problem
    key = problem.split("`")[1]
    full = f"{path}.{key}" if path else key
    if "missing" in problem:
        return full, f"{full} is missing"
    return full, f"unknown key {shorten(full)}; {_suggest(key, kind, inner, path)}"


def field_types(kind: Any, path: str = "") -> dict[str, Any]:
    """Return the fields of `kind`'s section at `path` with their types."""
    for name in filter(None, path.split(".")):
        field = name.partition("[")[0]  # of a list of sections
        kind = _section_in(field_types(kind)[field])
    return {field.name: field.type for field in msgspec.structs.fields(kind)}


def _suggest(key: str, kind: type[Any], inner: str, path: str) -> str:
    """Return what the unknown `key` in the section at `path`, `inner` in `kind`, may have meant.

    That is the key of this name in a section below, else the nearest one beside it.
    """
    fields = field_types(kind, inner)
    prefix = f"{path}." if path else ""
    sections = {name: _section_in(field) for name, field in fields.items()}
    below = [
        f"{prefix}{name}.{key}"
        for name, section in sections.items()
        if section is not None and key in field_types(section)
    ]
    if below:
        return f"did you mean {' or '.join(below)}?"
    near = nearest_name(key, fields)
    return f"choose from {', '.join(fields)}" if near is None else f"did you mean {prefix}{near}?"


def _name_types(match: re.Match[str]) -> str:
    return " or ".join(_TYPE_NAMES.get(name, name) for name in match[1].split(" | "))


def _range(kind: Any, path: str) -> str:
    """Return the range of the number at `path`, such as "from 0 to 1"."""
    limits: dict[str, float | None] = {}
    parent, _, leaf = path.partition("[")[0].rpartition(".")
    for meta in _metas(field_types(kind, parent)[leaf]):
        limits |= {name: getattr(meta, name) for name in ("ge", "gt", "le", "lt")}
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    return " ".join(
        f"{words[name]} {limit:.10g}" for name, limit in limits.items() if limit is not None
    )


def _metas(annotation: Any) -> Iterator[msgspec.Meta]:
    """Yield what limits the numbers of a type such as tuple[Size, ...] | None."""
    for part in get_args(annotation):
        if not isinstance(part, msgspec.Meta):
            yield from _metas(part)
        elif part.min_length is None:
            yield part


def _section_in(kind: Any) -> Any:
    """Return the struct type in a type such as tuple[Channel, ...] | None, which may be itself."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next(filter(None, map(_section_in, get_args(kind))), None)


def _choices(kind: Any) -> list[str]:
    """Return the values of a Literal, which may be optional."""
    parts = get_args(kind)
    literals = [get_args(part) for part in parts if get_args(part)] or [parts]
    return [value for literal in literals for value in literal if isinstance(value, str)]
