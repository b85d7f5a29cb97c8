"""Where a data set's raw files come from: a given folder or archive, raw/NAME, archives at hand, or a download."""

import re
from collections.abc import Callable
from pathlib import Path

from crkd_cli.data.prepare import Progress
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.base import Source
from crkd_cli.errors import CrkdError, UsageError, did_you_mean

Say = Callable[[str], None]    # one line to the user


def source_of(name: str, given: Path | None, root: Path, spacing: str | None, published_crop: bool) -> Source:
    """The source that reads the data set `name`: its own, or `folder` for a name that is no built-in set.

    Raises UsageError: a name that is no folder's name, or of nothing, or options that do not fit.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"{name!r} cannot name a data set: use letters, digits, '.', '_' and '-'")
    builtin = [known for known in SOURCES.names() if known != "folder"]
    if name not in builtin and given is None and not (root / "raw" / name).is_dir():
        hint = did_you_mean(name, builtin)
        raise UsageError(f"no data set is called {name!r}; {hint} Own data: crkd prepare-data {name} --source FOLDER")
    if published_crop and name != "la":
        raise UsageError("--published-crop is for la only: other sets are never cropped by a label")
    return SOURCES[name if name in builtin else "folder"](_spacing(spacing), published_crop)


def obtain(
    name: str, source: Source, given: Path | None, root: Path, download: bool, progress: Progress, say: Say
) -> Path:
    """The folder with the raw files of `name`; extracts, downloads or generates them into raw/NAME where needed.

    Raises CrkdError if there is nothing, with where to get it and what to run next.
    """
    home = root / "raw" / name
    if given is not None:
        if not given.exists():
            raise CrkdError(f"{given} does not exist; give the folder or archive with the raw files to --source")
        if given.is_dir():
            return given
    if given is None and home.is_dir() and any(home.iterdir()):
        return home
    raise CrkdError(_nothing(name, source, home))


def _nothing(name: str, source: Source, home: Path) -> str:
    place = f"then run: crkd prepare-data {name} --source FOLDER (or put the files into {home} and leave out --source)"
    return f"no raw files of {name}: {source.where}; {place}"


def _spacing(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        spacing = tuple(float(part) for part in re.split(r"[,x ]+", text.strip()))
    except ValueError:
        spacing = ()
    if len(spacing) not in (1, 2, 3) or not all(0 < value < 1e4 for value in spacing):
        raise UsageError(f"--spacing {text!r}: expected mm above 0, one number or one per axis, for example 10,1.5,1.5")
    return spacing
