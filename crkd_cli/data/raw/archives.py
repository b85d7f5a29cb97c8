"""Archives (zip, tar, tar.gz …) into a folder: nothing outside it, no links, no bombs, whole or not at all."""

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from crkd_cli.errors import CrkdError
from crkd_cli.paths import replace_folder, temporary_folder
from crkd_cli.progress import Progress

MB = 1 << 20
SMALL = 100 * MB  # what may always be unpacked
MOST_RATIO = 100  # unpacked size to archive size; images reach 10, label maps alone more, but small


class BadArchive(CrkdError):
    """An archive that is damaged or refused: another try with the same file ends the same."""

    def __init__(self, archive: Path, what: str) -> None:
        super().__init__(f"{archive} {what}")
        self.archive = archive


@dataclass(frozen=True)
class Member:
    name: str
    size: int  # bytes, as declared: readers stop there
    open: Callable[[], IO[bytes] | None]


def extract(archives: list[Path], target: Path, progress: Progress) -> None:
    """Unpack `archives` into the new or empty folder `target`, wholly or not at all.

    Raises BadArchive, or CrkdError for want of room.
    """
    with temporary_folder(target) as folder:
        for archive in archives:
            _extract(archive, folder, progress)
        if target.is_dir():
            target.rmdir()  # empty: nobody's files are replaced
        replace_folder(folder, target)


def is_archive(path: Path) -> bool:
    return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))


def _extract(archive: Path, folder: Path, progress: Progress) -> None:
    try:
        with _members(archive, shutil.disk_usage(folder).free) as members:
            total = sum(member.size for member in members)
            with progress(f"unpacking {archive.name}", max(total // MB, 1), "MB") as advance:
                done = 0
                for member in members:
                    path = folder.joinpath(*PurePosixPath(member.name).parts)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    source = member.open()
                    if source is None:
                        raise BadArchive(
                            archive, f"is damaged at {member.name}; copy or download it again"
                        )
                    if path.exists():
                        raise BadArchive(
                            archive, f"holds {member.name} twice: refused; unpack it yourself"
                        )
                    with source, path.open("wb") as file:
                        shutil.copyfileobj(source, file, MB)
                    if path.stat().st_size != member.size:
                        raise BadArchive(
                            archive, f"is truncated at {member.name}; copy or download it again"
                        )
                    done += member.size
                    advance(done // MB - (done - member.size) // MB)
    except (
        OSError,
        zipfile.BadZipFile,
        tarfile.TarError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        NotImplementedError,
    ) as error:
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # the disk's; gzip's and bz2's own have no number
            raise
        raise BadArchive(archive, f"is damaged ({error}); copy or download it again") from None
    except RuntimeError as error:  # zipfile's way of asking for a password
        raise BadArchive(
            archive, f"cannot be unpacked ({error}); unpack it yourself and give the folder"
        ) from None


@contextmanager
def _members(archive: Path, free: int) -> Iterator[list[Member]]:
    """The files of `archive`, checked. Raises BadArchive for names outside, links and bombs."""
    if not is_archive(archive):
        raise BadArchive(
            archive,
            "is no zip or tar archive; download it again, or give the folder with the files",
        )
    most = max(SMALL, MOST_RATIO * archive.stat().st_size)
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield _checked(archive, _zip_members(archive, opened), most, free)
    else:
        with tarfile.open(archive) as tar:
            yield _checked(archive, _tar_members(archive, tar), most, free)
            while tar.fileobj is not None and tar.fileobj.read(
                MB
            ):  # gzip checks its sum at the end
                pass


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[Member]:
    for info in opened.infolist():
        if stat.S_ISLNK(info.external_attr >> 16):
            raise BadArchive(
                archive, f"holds a link ({info.filename}): refused; unpack it yourself"
            )
        if not info.is_dir():
            yield Member(info.filename, info.file_size, partial(opened.open, info))


def _tar_members(archive: Path, tar: tarfile.TarFile) -> Iterator[Member]:
    for info in tar:
        if not info.isdir() and not info.isreg():
            raise BadArchive(
                archive, f"holds a link or device ({info.name}): refused; unpack it yourself"
            )
        if info.isreg():
            yield Member(info.name, info.size, partial(tar.extractfile, info))


def _checked(archive: Path, members: Iterator[Member], most: int, free: int) -> list[Member]:
    """All members that matter, read one by one so that a bomb is noticed before it is unpacked to be listed."""
    kept: list[Member] = []
    total = 0
    for member in members:
        parts = PurePosixPath(member.name).parts
        if (
            member.name.startswith("/")
            or ".." in parts
            or "\\" in member.name
            or ":" in member.name
            or not parts
        ):
            raise BadArchive(
                archive,
                f"holds a file outside its folder ({member.name}): refused; do not trust it",
            )
        total += member.size
        if total > most:
            raise BadArchive(
                archive, f"would unpack to more than {most // MB} MB: refused as an archive bomb"
            )
        if total > free:
            raise CrkdError(
                f"{archive} needs more than the {free // MB} MB that are free; free some space"
            )
        if parts[0] != "__MACOSX" and not parts[-1].startswith("."):
            kept.append(member)
    return kept
