"""Choose DICOM series by their descriptions or UIDs, and combine them as channels."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from crkd_cli.data.dicom_series import Series
from crkd_cli.errors import CrkdError

MAX_NAMES = 10


class Choice(NamedTuple):
    """The series of a case."""

    series: tuple[Series, ...]  # in the order of the channels, if there is no problem
    problem: str = ""  # why it cannot be used: the rest of a sentence that starts with its name


def choose(candidates: Sequence[Series], selection: str | Mapping[str, str]) -> list[Choice]:
    """Return the series of every case among `candidates`. Raises CrkdError if there are none.

    For several channels, the series of a study are a case, or those of a folder if more folders
    than studies have one series per channel.
    """
    patterns = {"": selection} if isinstance(selection, str) else selection
    fitting = [series for series in candidates if _matches_any(patterns.values(), series)]
    if not fitting:
        raise CrkdError(
            "no DICOM series has a description or UID that matches series: "
            f"{', '.join(map(repr, patterns.values()))}; there are {_names(candidates)}"
        )
    if isinstance(selection, str):
        return [Choice((series,), series.problem) for series in fitting]
    by_study = _groups(fitting, lambda series: series.tags.study)
    by_folder = _groups(fitting, lambda series: series.folder.rpartition("/")[0])
    choices = [[_choose_channels(group, selection) for group in by_study]]
    choices.append([_choose_channels(group, selection) for group in by_folder])
    return max(choices, key=lambda cases: sum(not case.problem for case in cases))


def _matches(pattern: str, series: Series) -> bool:
    """Tell whether a series has this description, in upper or lower case, or this UID."""
    parts = (re.escape(part) for part in pattern.split("*"))
    regex = re.compile(".*".join(parts), re.IGNORECASE)
    return any(regex.fullmatch(text) for text in (series.tags.description, series.tags.series))


def _matches_any(patterns: Iterable[str], series: Series) -> bool:
    return any(_matches(pattern, series) for pattern in patterns)


def _groups(candidates: Iterable[Series], key: Callable[[Series], str]) -> list[list[Series]]:
    groups: dict[str, list[Series]] = defaultdict(list)
    for series in candidates:
        groups[key(series)].append(series)
    return list(groups.values())


def _choose_channels(group: Sequence[Series], selection: Mapping[str, str]) -> Choice:
    """Return the series of each channel, or what is wrong with them."""
    chosen: list[Series] = []
    for channel, pattern in selection.items():
        matches = [series for series in group if _matches(pattern, series)]
        purpose = f"for the channel {channel} ({pattern!r})"
        if not matches:
            problem = f"has no DICOM series {purpose}, only {_names(group)}; add it, or remove them"
            return Choice(tuple(group), problem)
        if len(matches) > 1:
            problem = f"has {len(matches)} DICOM series {purpose}: {_names(matches)}"
            return Choice(tuple(group), f"{problem}; make its pattern more specific")
        chosen += matches
    problems = [series.problem for series in chosen if series.problem]
    return Choice(tuple(chosen), problems[0] if problems else "")


def _names(group: Iterable[Series]) -> str:
    names = sorted({series.title for series in group})
    others = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + others
