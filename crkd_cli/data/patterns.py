"""Patterns of file names: `*` is any text, `{name}` the name of a case, `{patient}` a patient."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache

from crkd_cli.errors import did_you_mean

_PART = re.compile(r"\*|\{(.*?)\}")


def check(key: str, pattern: str, allowed: tuple[str, ...], needed: str = "") -> None:
    """Raise ValueError, which names the `key`, if `pattern` cannot be used."""
    fields = [field for field in _PART.findall(pattern) if field]
    for field in fields:
        if field not in allowed:
            raise ValueError(f"{key}: {{{field}}} is unknown; {did_you_mean(field, allowed)}")
    if needed and needed not in fields:
        raise ValueError(f"{key}: {pattern!r} lacks {{{needed}}}")
    if len(fields) > len(set(fields)):
        raise ValueError(f"{key}: {pattern!r} contains {{{fields[0]}}} more than once")
    if pattern.startswith("/") or ".." in pattern.split("/"):
        raise ValueError(f"{key}: {pattern!r} must be relative to the folder of the raw files")


def match(pattern: str, text: str, field: str) -> Iterator[str]:
    """Yield the shortest and the longest `{field}` for which `pattern` matches `text`."""
    previous = None
    for lazy in (True, False):
        matched = _regex(pattern, lazy).fullmatch(text)
        value = None if matched is None else matched.groupdict().get(field)
        if value is not None and value != previous:
            yield value
        previous = value


def matches(pattern: str, text: str) -> bool:
    """Tell whether `pattern` matches `text`."""
    return _regex(pattern, True).fullmatch(text) is not None


def common(texts: Iterable[str]) -> str:
    """Return a pattern for all `texts`: their common start, `*`, and their common last words."""
    first, *others = dict.fromkeys(texts)
    if not others:
        return first
    start = _common_length(first, others)
    ends = [text[start:][::-1] for text in (first, *others)]
    end = first[len(first) - _common_length(ends[0], ends[1:]) :]
    words = re.search(r"[ _./-].*", end)
    return f"{first[:start]}*{words[0] if words else ''}"


def common_template(entries: Iterable[tuple[str, str]]) -> str | None:
    """Return a pattern with {name} for all `entries`, or None if there is none.

    `entries` are pairs of a file name and the name of its case, which is part of it.
    """
    templates = [_template(file, name) for file, name in entries]
    stated = [template for template in templates if template is not None]
    if not stated or len(stated) < len(templates):
        return None
    pattern = common(stated)
    return pattern if "{name}" in pattern else None


def folder(pattern: str) -> str:
    """Return the folder that contains all files of a pattern, with / at its end, or ""."""
    literal = _PART.split(pattern)[0]
    parent, slash, _ = literal.rpartition("/")
    return parent + slash


def local(pattern: str) -> str:
    """Return a pattern without the folders before {name}."""
    before, name, after = pattern.partition("{name}")
    return before.rpartition("/")[2] + name + after


@cache
def _regex(pattern: str, lazy: bool) -> re.Pattern[str]:
    """Return a regular expression in which a field is as short or as long as possible."""
    pattern = unicodedata.normalize("NFC", pattern)
    expression = ""
    end = 0
    for part in _PART.finditer(pattern):
        expression += re.escape(pattern[end : part.start()])
        end = part.end()
        if part[1]:
            expression += f"(?P<{part[1]}>[^/]+{'?' if lazy else ''})"
        else:
            expression += "[^/]*"
    return re.compile(expression + re.escape(pattern[end:]))


def _template(file: str, name: str) -> str | None:
    """Return a file name with `{name}` in place of the name of its case."""
    parent, slash, last = file.rpartition("/")
    if last.startswith(name):
        return f"{parent}{slash}{{name}}{last[len(name) :]}"
    grandparent, inner_slash, inner = parent.rpartition("/")
    if inner == name:
        return f"{grandparent}{inner_slash}{{name}}/{last}"
    return None


def _common_length(first: str, others: Iterable[str]) -> int:
    """Return how many characters at the start all texts have in common."""
    for other in others:
        pairs = enumerate(zip(first, other, strict=False))
        first = first[: next((at for at, (a, b) in pairs if a != b), min(len(first), len(other)))]
    return len(first)
