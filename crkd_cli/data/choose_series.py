"""Choose DICOM series by their descriptions or UIDs, and combine them as channels."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from crkd_cli.data.dicom_series import Series
from crkd_cli.errors import CrkdError
from crkd_cli.text import printable

MAX_NAMES = 10


def choose(
    series: Sequence[Series], selection: str | Mapping[str, str]
) -> list[tuple[Series, ...]]:
    """Return the series of every case. Raises CrkdError if there are none, or if one is missing."""
    patterns = {"": selection} if isinstance(selection, str) else selection
    fitting = [one for one in series if any(_matches(text, one) for text in patterns.values())]
    if not fitting:
        raise CrkdError(
            "no DICOM series has a description or UID that matches series: "
            f"{', '.join(map(repr, patterns.values()))}; there are {_names(series)}"
        )
    if isinstance(selection, str):
        return [(one,) for one in fitting]
    by_study = _groups(fitting, lambda one: one.tags.study)
    by_folder = _groups(fitting, lambda one: one.folder.rpartition("/")[0])
    for groups in (by_study, by_folder):
        cases = [_by_channel(group, selection) for group in groups]
        if all(len(matches) == 1 for case in cases for matches in case.values()):
            return [tuple(matches[0] for matches in case.values()) for case in cases]
    for group in by_study:
        _check_channels(group, selection)
    raise AssertionError("a study is incomplete")


def _matches(pattern: str, series: Series) -> bool:
    """Tell whether a series has this description, in upper or lower case, or this UID."""
    parts = (re.escape(part) for part in pattern.split("*"))
    regex = re.compile(".*".join(parts), re.IGNORECASE)
    return any(regex.fullmatch(text) for text in (series.tags.description, series.tags.series))


def _groups(series: Iterable[Series], key: Callable[[Series], str]) -> list[list[Series]]:
    groups: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        groups[key(one)].append(one)
    return list(groups.values())


def _by_channel(group: Sequence[Series], selection: Mapping[str, str]) -> dict[str, list[Series]]:
    return {
        channel: [one for one in group if _matches(pattern, one)]
        for channel, pattern in selection.items()
    }


def _check_channels(group: Sequence[Series], selection: Mapping[str, str]) -> None:
    """Raise CrkdError unless a study has one series per channel."""
    place = printable(group[0].folder) or "the folder"
    for channel, matches in _by_channel(group, selection).items():
        wanted = f"for the channel {channel} ({selection[channel]!r})"
        if not matches:
            raise CrkdError(
                f"the study in {place} has no DICOM series {wanted}, only {_names(group)}; add it, "
                "or remove the study"
            )
        if len(matches) > 1:
            raise CrkdError(
                f"the study in {place} has {len(matches)} DICOM series {wanted}: "
                f"{_names(matches)}; make its pattern more specific"
            )


def _names(series: Iterable[Series]) -> str:
    names = sorted({f"{printable(one.tags.description)!r}" for one in series})
    others = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + others
