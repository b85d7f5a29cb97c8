"""Locks that allow one writer per folder; they end with their process, even if it is killed."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from crkd_cli.errors import CrkdError, UsageError

if TYPE_CHECKING:
    from filelock import FileLock

LONGEST_NAME_BYTES = 200


def lock_output(folder: Path, option: str, activity: str = "is writing to") -> "FileLock":
    """Create `folder` and keep other processes from writing to it until `release` or the end.

    The lock is a hidden file in the folder. Raises UsageError if another process holds it, and
    CrkdError if the folder cannot be written; both name the `option` that takes another folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _acquire(folder / ".lock")
    except TimeoutError:
        raise UsageError(
            f"another process {activity} {folder}; wait until it ends, or give another folder "
            f"with {option}"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise CrkdError(f"cannot write to {folder}: {reason}; give another with {option}") from None


def release(lock: "FileLock") -> None:
    """Remove the file of the lock and let other processes write."""
    # While the lock is held: a process that opened the file before sees that it is gone.
    with suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from replacing `folder`, which need not exist, during the block.

    The lock is a hidden file beside the folder, because the folder itself is renamed. Where no file
    can be created, nobody can replace the folder, so no lock is needed. Raises UsageError if
    another process holds the lock, and CrkdError if the disk is full.
    """
    lock: FileLock | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquire(folder.with_name(f".{short_name(folder)}.lock"))
    except TimeoutError:
        raise UsageError(
            f"another process is writing to {folder}; wait until it ends, then rerun this command"
        ) from None
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = error.strerror or error
            raise CrkdError(
                f"cannot write {folder}: {reason}; free some space or give another --data-root"
            ) from None
    try:
        yield
    finally:
        if lock is not None:
            release(lock)


def short_name(path: Path) -> str:
    """Return the name of `path`, or a hash of it if other names that contain it would be too long.

    File systems allow 255 bytes.
    """
    name = os.fsencode(path.name)
    return path.name if len(name) <= LONGEST_NAME_BYTES else hashlib.sha256(name).hexdigest()


def _acquire(file: Path) -> "FileLock":
    from filelock import FileLock  # slow to import

    lock = FileLock(file, mode=0o666)
    lock.acquire(blocking=False)
    return lock
