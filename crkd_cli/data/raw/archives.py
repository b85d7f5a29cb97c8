"""Unpack archives (zip, tar, tar.gz …): all files or none, and nothing outside the target folder.

The `data` filter of `tarfile` is not enough: it renames absolute paths instead of refusing them,
accepts links, repeated names and archive bombs, and Python 3.11.0 to 3.11.3 lack it.
"""

import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from crkd_cli.errors import CrkdError
from crkd_cli.paths import replace_folder, temporary_folder
from crkd_cli.progress import Progress
from crkd_cli.text import shorten

MB = 1 << 20
ALWAYS_ALLOWED_BYTES = 100 * MB  # unpacked, at any compression ratio
MAX_RATIO = 100  # of unpacked to packed size; images reach 10, and label maps are small
MAX_FOLDERS = 64  # within each other
MAX_NAME_BYTES = 255  # what file systems allow
# What the modules raise for damaged archives, with ValueError for names that are not Unicode.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    struct.error,
    NotImplementedError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
)


class ArchiveError(CrkdError):
    """An archive that is damaged or refused: unpacking it again would fail again."""

    def __init__(self, archive: Path, problem: str) -> None:
        super().__init__(f"{archive} {problem}")
        self.archive = archive


class _Header(tarfile.TarInfo):
    """The header of a file in a tar archive.

    `tarfile` takes a damaged header for the end of the archive, and does not miss the real end.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        """Parse a header. Raises ReadError unless it is intact or marks the end."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):  # the end
                raise
            raise tarfile.ReadError(str(error)) from None


@dataclass(frozen=True)
class _Member:
    """A regular file in an archive."""

    name: str
    size: int  # in bytes, as declared; readers stop there
    open: Callable[[], IO[bytes]]


def extract(archives: list[Path], target: Path, progress: Progress) -> None:
    """Unpack all `archives` into `target`, a folder that is empty or does not exist yet.

    Raises ArchiveError, or CrkdError if the disk is too small; then nothing is written.
    """
    with temporary_folder(target) as folder:
        for archive in archives:
            with _damage_as_archive_error(archive), _open(archive) as members:
                _extract(archive, members, folder, progress)
        if target.is_dir():
            target.rmdir()  # fails unless it is empty, so that no files are replaced
        replace_folder(folder, target)


def is_archive(path: Path) -> bool:
    """Tell whether `path` is a zip or tar file, by its content."""
    return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))


@contextmanager
def _damage_as_archive_error(archive: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        # Errors of the disk have a number; those that gzip and bz2 raise have none.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ArchiveError(archive, f"is damaged ({error}); copy or download it again") from None
    except RuntimeError as error:  # zipfile asks for a password
        raise ArchiveError(
            archive, f"cannot be unpacked ({error}); unpack it yourself and give the folder"
        ) from None


@contextmanager
def _open(archive: Path) -> Iterator[Iterable[_Member]]:
    if not is_archive(archive):
        raise ArchiveError(
            archive, "is not a zip or tar archive; download it again, or give the unpacked folder"
        )
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield _zip_members(archive, zipped)
    else:
        with tarfile.open(archive, tarinfo=_Header) as tar:
            yield _tar_members(archive, tar)
            # gzip verifies its checksum at the end of the file.
            while tar.fileobj is not None and tar.fileobj.read(MB):
                pass


def _zip_members(archive: Path, zipped: zipfile.ZipFile) -> Iterator[_Member]:
    for info in zipped.infolist():
        if not info.filename or "\0" in info.orig_filename:
            raise ArchiveError(
                archive, "is damaged (a file has no valid name); copy or download it again"
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ArchiveError(archive, f"contains a link ({info.filename}); unpack it yourself")
        if not info.is_dir():
            yield _Member(info.filename, info.file_size, partial(zipped.open, info))


def _tar_members(archive: Path, tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        if info.isreg():
            # extractfile returns None for other members only.
            open_member = cast("Callable[[], IO[bytes]]", partial(tar.extractfile, info))
            yield _Member(info.name, info.size, open_member)
        elif not info.isdir():
            raise ArchiveError(
                archive, f"contains a link or device ({info.name}); unpack it yourself"
            )


def _extract(archive: Path, members: Iterable[_Member], folder: Path, progress: Progress) -> None:
    accepted = _check(archive, members, shutil.disk_usage(folder).free)
    total = sum(member.size for member in accepted)
    done = 0
    with progress(f"unpacking {archive.name}", max(total // MB, 1), "MB") as advance:
        for member in accepted:
            _write(archive, member, folder)
            before = done
            done += member.size
            advance(done // MB - before // MB)


def _check(archive: Path, members: Iterable[_Member], free: int) -> list[_Member]:
    """Return all members except system files. Raises ArchiveError if one is dangerous.

    The sizes are added up while the members are listed: listing a tar bomb unpacks it.
    """
    limit = max(ALWAYS_ALLOWED_BYTES, MAX_RATIO * archive.stat().st_size)
    accepted = []
    total = 0
    for member in members:
        parts = PurePosixPath(member.name).parts
        outside = not parts or parts[0] == "/" or ".." in parts
        if outside or "\\" in member.name or ":" in member.name:
            raise ArchiveError(
                archive, f"contains a file outside its folder ({member.name}); do not trust it"
            )
        if len(parts) > MAX_FOLDERS or len(os.fsencode(max(parts, key=len))) > MAX_NAME_BYTES:
            raise ArchiveError(
                archive, f"contains too long a name ({shorten(member.name)}); unpack it yourself"
            )
        total += member.size
        if total > limit:
            raise ArchiveError(
                archive, f"unpacks to more than {limit // MB} MB; refused as an archive bomb"
            )
        if total > free:
            raise CrkdError(
                f"{archive} needs more than the {free // MB} MB that are free; free some space"
            )
        if parts[0] != "__MACOSX" and not parts[-1].startswith("."):
            accepted.append(member)
    return accepted


def _write(archive: Path, member: _Member, folder: Path) -> None:
    path = folder / member.name
    if path.exists():
        raise ArchiveError(archive, f"contains {member.name} twice; unpack it yourself")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ArchiveError(
            archive, f"contains a file and a folder of one name ({member.name}); unpack it yourself"
        ) from None
    with member.open() as source, path.open("wb") as file:
        shutil.copyfileobj(source, file, MB)
    if path.stat().st_size != member.size:
        raise ArchiveError(archive, f"is truncated at {member.name}; copy or download it again")
