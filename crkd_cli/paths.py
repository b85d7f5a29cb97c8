"""Packaged files, the data root, and writes that a crash cannot leave half done."""

import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crkd_cli.errors import CrkdError

# File systems allow names of 255 bytes, and a character has up to 4. Temporary names, which are
# longer than the names they stand for, keep the end of a file's name, and of a folder's longer
# name only a hash.
TAIL_CHARACTERS = 50
LONGEST_NAME_BYTES = 200


def packaged_folder(name: str) -> Path:
    """Return the folder `configs` or `splits`.

    It is inside the package of an installed wheel and beside the package in a checkout.
    """
    package = Path(__file__).parent
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def resolve_data_root(option: Path | None = None) -> Path:
    """Return the folder with raw/ and prepared/: --data-root, else $CRKD_DATA, else ./data."""
    return option or Path(os.environ.get("CRKD_DATA") or "data")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` if the block succeeds and is removed otherwise.

    The content is synced before the rename, so that a crash leaves the old file or the new one.
    Raises CrkdError, with the path, if the folder cannot be written or the disk is full.
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
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise CrkdError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield a folder beside `target` that is removed at the end unless `replace_folder` moved it.

    Leftovers of killed processes are removed first. Raises CrkdError, with the path, if the folder
    cannot be written or the disk is full.
    """
    folder = None
    if blocked := next((path for path in target.parents if path.is_file()), None):
        raise CrkdError(f"{blocked} is a file; give a folder to --data-root")
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
    """Move a temporary folder to `target`; what was there before survives a failure."""
    folder.chmod(0o755)
    backup = _backup(target)
    if target.exists():
        target.rename(backup)
    try:
        folder.rename(target)
    except OSError:
        if backup.exists():
            backup.rename(target)
        raise
    shutil.rmtree(backup, ignore_errors=True)


def create_output_folder(folder: Path, option: str) -> None:
    """Create `folder` before the work starts, so that no result is lost for lack of a place.

    Raises CrkdError that names the `option` to give another folder with.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise CrkdError(f"cannot write to {folder}: {reason}; give another with {option}") from None


def _remove_leftovers(target: Path) -> None:
    backup = _backup(target)
    if backup.exists() and not target.exists():  # killed during replace_folder
        backup.rename(target)
    # Exactly the eight random characters of mkdtemp: a longer name belongs to another dataset.
    leftovers = target.parent.glob(glob.escape(_temporary_name(target, "")) + "?" * 8)
    for leftover in (backup, *leftovers):
        shutil.rmtree(leftover, ignore_errors=True)


def _backup(target: Path) -> Path:
    return target.with_name(_temporary_name(target, "old"))


def _temporary_name(target: Path, ending: str) -> str:
    """Return the name of a temporary folder for `target`, within the 255 bytes of a file name."""
    name = target.name
    if len(os.fsencode(name)) > LONGEST_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".tmp-{name}-{ending}"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
