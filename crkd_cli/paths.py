"""Packaged files, the data root, and results that a crash cannot leave half written."""

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from crkd_cli.errors import CrkdError
from crkd_cli.locks import lock_output, only_writer, release, short_name

# Temporary names keep the end of a file's name: file systems allow names of 255 bytes, and a
# character has up to 4.
TAIL_CHARACTERS = 50
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_BELOW_BYTES = 1 << 16
_RANDOM = "[a-z0-9_]" * 8  # in the names of mkstemp and mkdtemp


class DiskFullError(CrkdError):
    """The disk is full, so a command ends instead of continuing with the next file."""


def packaged_folder(name: str) -> Path:
    """Return the folder `configs` or `splits`.

    It is inside the package of an installed wheel and beside the package in a checkout.
    """
    package = Path(__file__).parent
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def resolve_data_root(option: Path | None = None) -> Path:
    """Return the folder with raw/ and prepared/: --data-root, else $CRKD_DATA, else ./data.

    Raises CrkdError if this is a file.
    """
    root = option or Path(os.environ.get("CRKD_DATA") or "data")
    if root.is_file():
        raise CrkdError(f"{root} is a file; give a folder to --data-root")
    return root


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` if the block succeeds and is removed otherwise.

    The content is synced before the rename, and the folder after it: a crash leaves the old file or
    the new one, and no crash takes back what was written.

    Raises CrkdError, with the path, if the folder cannot be written, and DiskFullError if the disk
    is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays last and in lower case, because writers choose the format by it.
        suffix = f"-{path.name.lower()[-TAIL_CHARACTERS:]}"
        handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=suffix, dir=path.parent)
        temporary = Path(name)
        os.close(handle)
        yield temporary
        sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        full = temporary is not None and _is_disk_full(error, path.parent)
        kind = DiskFullError if full else CrkdError
        raise kind(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def output_folder(folder: Path, option: str, *subfolders: str) -> Iterator[None]:
    """Create `folder`, and keep other processes from writing to it during the block.

    Temporary files of killed processes in it and in `subfolders` are removed. Raises UsageError if
    another process writes there, and CrkdError if nobody can; both name the `option` that
    takes another folder.
    """
    lock = lock_output(folder, option)
    try:
        for path in (folder, *(folder / name for name in subfolders)):
            remove_temporary_files(path)
        yield
    finally:
        release(lock)


def remove_temporary_files(folder: Path) -> None:
    """Remove temporary files of `atomic_write` that killed processes left in `folder`.

    Its lock must be held.
    """
    for leftover in folder.glob(f".tmp-{_RANDOM}-*"):
        with suppress(OSError):
            leftover.unlink()


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield a folder beside `target` that is removed at the end unless `replace_folder` moved it.

    During the block this process is the only writer of `target`, so the leftovers of others are
    from killed ones, and are removed first. Raises UsageError if another process writes `target`,
    and CrkdError, with the path, if the folder cannot be written or the disk is full.
    """
    folder = None
    if blocked := next((path for path in target.parents if path.is_file()), None):
        raise CrkdError(f"{blocked} is a file; give a folder to --data-root")
    with only_writer(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(target)
            folder = Path(tempfile.mkdtemp(prefix=_temporary_name(target, ""), dir=target.parent))
            yield folder
        except OSError as error:
            reason = error.strerror or error
            raise CrkdError(
                f"cannot write {target}: {reason}; free some space or give another --data-root"
            ) from None
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def replace_folder(folder: Path, target: Path) -> None:
    """Move a temporary folder to `target`; what was there before survives a failure.

    All of it is synced before it is moved, so that not even a power cut leaves a part of it.
    """
    folder.chmod(0o755)
    sync_tree(folder)
    backup = _backup(target)
    if target.exists():
        target.rename(backup)
    try:
        folder.rename(target)
    except BaseException:  # also Ctrl-C
        if backup.exists():
            backup.rename(target)
        raise
    sync(target.parent)
    shutil.rmtree(backup, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        # Some file systems do not sync folders, and some folders can be written but not read.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES) or not path.is_dir():
            raise


def sync_tree(folder: Path) -> None:
    """Flush all files and folders in `folder` to disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def _remove_leftovers(target: Path) -> None:
    backup = _backup(target)
    if backup.exists() and not target.exists():  # killed during replace_folder
        backup.rename(target)
    # Exactly the random characters of mkdtemp: a longer name belongs to another dataset.
    leftovers = target.parent.glob(glob.escape(_temporary_name(target, "")) + _RANDOM)
    for leftover in (backup, *leftovers):
        shutil.rmtree(leftover, ignore_errors=True)


def _backup(target: Path) -> Path:
    return target.with_name(_temporary_name(target, "old"))


def _temporary_name(target: Path, ending: str) -> str:
    """Return the name of a temporary folder for `target`, within the 255 bytes of a file name."""
    return f".tmp-{short_name(target)}-{ending}"


def _is_disk_full(error: OSError, folder: Path) -> bool:
    """Return whether a write failed for lack of space; some writers do not report the reason."""
    if error.errno is not None:
        return error.errno in DISK_FULL
    return shutil.disk_usage(folder).free < FULL_BELOW_BYTES


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
