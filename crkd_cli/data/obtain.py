"""Get the raw files of a dataset: a given folder or archive, raw/NAME, or a download."""

import re
from pathlib import Path

from crkd_cli.data.description import FILES
from crkd_cli.data.plan import MAX_SPACING_MM, MIN_SPACING_MM
from crkd_cli.data.raw import formats
from crkd_cli.data.raw.archives import ArchiveError, extract
from crkd_cli.data.raw.download import fetch
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.base import Source
from crkd_cli.errors import CrkdError, UsageError, did_you_mean
from crkd_cli.locks import only_writer
from crkd_cli.paths import replace_folder, temporary_folder
from crkd_cli.progress import Notify, Progress


def choose_source(
    name: str,
    given: Path | None,
    root: Path,
    spacing: str | None,
    published_crop: bool,
    ignore: int | None = None,
) -> Source:
    """Return the source that reads the dataset `name`: a built-in one, else `folder`.

    Raises UsageError if `name` cannot be a folder's name or has no raw files, or if an option does
    not apply to it.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(
            f"{name!r} cannot be the name of a dataset: use letters, digits, '.', '_' and '-'"
        )
    builtin = [source for source in SOURCES.names() if source != "folder"]
    if name not in builtin and given is None and not (root / "raw" / name).is_dir():
        raise UsageError(
            f"no dataset is called {name!r}; {did_you_mean(name, builtin)}; "
            f"for your own data: crkd prepare-data {name} --source FOLDER"
        )
    if published_crop and name != "la":
        raise UsageError(
            "--published-crop is for la only: other datasets are never cropped around a label"
        )
    if ignore is not None and name in builtin:
        raise UsageError(f"--ignore is for your own data: the classes of {name} are known")
    source = SOURCES[name if name in builtin else "folder"]
    return source(_parse_spacing(spacing), published_crop, ignore)


def obtain(
    name: str,
    source: Source,
    given: Path | None,
    root: Path,
    download: bool,
    progress: Progress,
    notify: Notify,
) -> Path:
    """Return the folder with the raw files of the dataset `name`.

    If necessary, they are unpacked, downloaded or generated into raw/NAME. Raises CrkdError if
    there are none, with where to get them and what to run next.
    """
    home = root / "raw" / name
    if given is not None:
        return _from_given(name, source, given, home, progress)
    if source.generated:
        return _generate(source, home, progress)
    if has_files(home):
        return home
    archives = _archives_in(Path(), source)
    if archives:
        notify(f"found {', '.join(map(str, archives))} in the current folder")
        extract(archives, home, progress)
        return home
    if source.remote and download:
        return _download(source, home, progress, notify)
    raise CrkdError(
        f"no raw files of {name}: {source.where}; then run: crkd prepare-data {name} --source PATH "
        f"(a folder or an archive), or put the files into {home} and drop --source"
    )


def has_files(folder: Path) -> bool:
    """Return whether `folder` exists and is not empty."""
    return folder.is_dir() and any(folder.iterdir())


def _from_given(name: str, source: Source, given: Path, home: Path, progress: Progress) -> Path:
    if not given.exists():
        raise CrkdError(
            f"{given} does not exist; give the folder or archive with the raw files to --source"
        )
    if given.is_dir():
        archives = _archives_in(given, source)
        if not archives or _has_cases(source, given):
            return given
    elif given.name in FILES:
        raise CrkdError(f"{given} describes a dataset; give the folder that contains it")
    elif formats.suffix(given):
        raise CrkdError(
            f"{given} is one image; give the folder that contains images/ and labels/, "
            "or an archive"
        )
    else:
        archives = _with_other_parts(given, source)
    if has_files(home):
        raise CrkdError(
            f"{home} already contains raw files; use them (crkd prepare-data {name}), "
            "or remove them first"
        )
    extract(archives, home, progress)
    return home


def _archives_in(folder: Path, source: Source) -> list[Path]:
    """Return the archives of the dataset in `folder`: all published parts, or what users have."""
    parts = [folder / remote.name for remote in source.remote]
    if parts and all(part.is_file() for part in parts):
        return parts
    matches = [path for pattern in source.archives for path in folder.glob(pattern)]
    return sorted(path for path in matches if path.is_file())


def _with_other_parts(archive: Path, source: Source) -> list[Path]:
    """Return `archive`, with the other parts beside it if it is one of several published ones."""
    parts = [archive.with_name(remote.name) for remote in source.remote]
    if archive not in parts:
        return [archive]
    return [part for part in parts if part.is_file()]


def _has_cases(source: Source, folder: Path) -> bool:
    try:
        return bool(type(source)().find(folder))
    except CrkdError:
        return False


def _download(source: Source, home: Path, progress: Progress, notify: Notify) -> Path:
    """Download the parts that are not in the current folder, and unpack all of them.

    A downloaded archive is removed when it is unpacked, or if it is damaged: otherwise, the next
    run would use it again.
    """
    folder = home.parent / ".downloads"
    archives = []
    with only_writer(folder / home.name):
        for remote in source.remote:
            local = Path(remote.name)
            archives.append(local if local.is_file() else fetch(remote, folder, progress, notify))
        try:
            extract(archives, home, progress)
        except ArchiveError as error:
            _remove_download(error.archive, folder)
            raise
        for archive in archives:
            _remove_download(archive, folder)
    return home


def _remove_download(archive: Path, folder: Path) -> None:
    """Remove `archive` if it was downloaded into `folder`; other archives are the user's."""
    if archive.parent == folder:
        archive.unlink()


def _generate(source: Source, home: Path, progress: Progress) -> Path:
    with progress("drawing", None, "cases") as advance, temporary_folder(home) as folder:
        source.generate(folder, advance)
        replace_folder(folder, home)
    return home


def _parse_spacing(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        spacing = tuple(float(part) for part in re.split(r"[,x ]+", text.strip()))
    except ValueError:
        spacing = ()
    if len(spacing) not in (1, 2, 3) or not all(
        MIN_SPACING_MM <= value <= MAX_SPACING_MM for value in spacing
    ):
        raise UsageError(
            f"--spacing {text!r}: expected mm from {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g}, "
            "one number or one per axis, such as 10,1.5,1.5"
        )
    return spacing
