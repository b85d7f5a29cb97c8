"""Where a data set's raw files come from: a given folder or archive, raw/NAME, archives at hand, or a download."""

import re
from pathlib import Path

from crkd_cli.data.raw import formats
from crkd_cli.data.raw.archives import ArchiveError, extract
from crkd_cli.data.raw.download import fetch
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.base import Source
from crkd_cli.errors import CrkdError, UsageError, did_you_mean
from crkd_cli.paths import replace_folder, temporary_folder
from crkd_cli.progress import Notify, Progress


def source_of(
    name: str, given: Path | None, root: Path, spacing: str | None, published_crop: bool
) -> Source:
    """The source that reads the data set `name`: its own, or `folder` for a name that is no built-in set.

    Raises UsageError: a name that is no folder's name, or of nothing, or options that do not fit.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"{name!r} cannot name a data set: use letters, digits, '.', '_' and '-'")
    builtin = [known for known in SOURCES.names() if known != "folder"]
    if name not in builtin and given is None and not (root / "raw" / name).is_dir():
        hint = did_you_mean(name, builtin)
        raise UsageError(
            f"no data set is called {name!r}; {hint} Own data: crkd prepare-data {name} --source FOLDER"
        )
    if published_crop and name != "la":
        raise UsageError("--published-crop is for la only: other sets are never cropped by a label")
    return SOURCES[name if name in builtin else "folder"](_spacing(spacing), published_crop)


def obtain(
    name: str,
    source: Source,
    given: Path | None,
    root: Path,
    download: bool,
    progress: Progress,
    notify: Notify,
) -> Path:
    """The folder with the raw files of `name`; unpacks, downloads or generates them into raw/NAME where needed.

    Raises CrkdError if there is nothing, with where to get it and what to run next.
    """
    home = root / "raw" / name
    if given is not None:
        return _from_given(name, source, given, home, progress)
    if source.generated:
        return _generate(source, home, progress)
    if home.is_dir() and any(home.iterdir()):
        return home
    if archives := _archives_in(Path(), source):
        notify(f"found {', '.join(map(str, archives))} here")
        extract(archives, home, progress)
        return home
    if source.remote and download:
        return _download(source, home, progress, notify)
    raise CrkdError(
        f"no raw files of {name}: {source.where}; then run: crkd prepare-data {name} --source PATH "
        f"(a folder or an archive), or put the files into {home} and leave out --source"
    )


def _from_given(name: str, source: Source, given: Path, home: Path, progress: Progress) -> Path:
    if not given.exists():
        raise CrkdError(
            f"{given} does not exist; give the folder or archive with the raw files to --source"
        )
    if given.is_dir():
        archives = _archives_in(given, source)
        if not archives or _understood(source, given):
            return given
    elif formats.suffix(given):
        raise CrkdError(
            f"{given} is one image; give the folder that holds images/ and labels/, or an archive"
        )
    else:
        parts = [given.with_name(remote.name) for remote in source.remote]
        archives = [part for part in parts if part.is_file()] if given in parts else [given]
    if home.is_dir() and any(home.iterdir()):
        raise CrkdError(
            f"{home} already holds raw files; use them (crkd prepare-data {name}), or remove them first"
        )
    extract(archives, home, progress)
    return home


def _archives_in(folder: Path, source: Source) -> list[Path]:
    """The data set's archives in `folder`: all that its publisher splits it into, or those that users have."""
    parts = [folder / remote.name for remote in source.remote]
    if parts and all(part.is_file() for part in parts):
        return parts
    return sorted(
        path for pattern in source.archives for path in folder.glob(pattern) if path.is_file()
    )


def _understood(source: Source, folder: Path) -> bool:
    try:
        return bool(type(source)().find(folder))
    except CrkdError:
        return False


def _download(source: Source, home: Path, progress: Progress, notify: Notify) -> Path:
    """Every part that is not in the current folder; what was downloaded is removed once it is unpacked, or is of no use."""
    folder = home.parent / ".downloads"
    here = [Path(remote.name) for remote in source.remote]
    archives = [
        path if path.is_file() else fetch(remote, folder, progress, notify)
        for path, remote in zip(here, source.remote, strict=True)
    ]
    try:
        extract(archives, home, progress)
    except ArchiveError as error:  # it would be taken for a good one next time
        if error.archive.parent == folder:
            error.archive.unlink()
        raise
    for archive in archives:
        if archive.parent == folder:
            archive.unlink()
    return home


def _generate(source: Source, home: Path, progress: Progress) -> Path:
    with progress("drawing", None, "cases") as advance, temporary_folder(home) as folder:
        source.generate(folder, advance)
        replace_folder(folder, home)
    return home


def _spacing(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        spacing = tuple(float(part) for part in re.split(r"[,x ]+", text.strip()))
    except ValueError:
        spacing = ()
    if len(spacing) not in (1, 2, 3) or not all(0 < value < 1e4 for value in spacing):
        raise UsageError(
            f"--spacing {text!r}: expected mm above 0, one number or one per axis, for example 10,1.5,1.5"
        )
    return spacing
