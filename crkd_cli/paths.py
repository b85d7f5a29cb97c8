"""Where things lie: packaged configurations and splits, the data root, and atomic writes."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crkd_cli.errors import CrkdError


def packaged_folder(folder: str) -> Path:
    """`configs` or `splits`: inside an installed wheel, else beside the package in a checkout."""
    package = Path(__file__).parent
    installed = package / folder
    return installed if installed.is_dir() else package.parent / folder


def data_root(given: Path | None = None) -> Path:
    """--data-root, else $CRKD_DATA, else ./data. Holds raw/NAME and prepared/NAME."""
    return given or Path(os.environ.get("CRKD_DATA") or "data")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that replaces it when the block ends well and vanishes when it does not.

    The content is synced before the rename, so a crash leaves the old file or the new one, never half of either.
    Raises CrkdError, with the path, when the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays last: writers choose the format by it, some by lower case only.
        handle, name = tempfile.mkstemp(
            prefix=".tmp-", suffix="-" + path.name.lower(), dir=path.parent
        )
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
    """A folder beside `target` that is gone at the end, unless `put` gave it that place; so is what killed processes left.

    Raises CrkdError, with the path, when it cannot be written or the disk is full.
    """
    folder = None
    if blocked := next((path for path in target.parents if path.is_file()), None):
        raise CrkdError(f"{blocked} is a file; give a folder to --data-root")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if (old := _old(target)).exists() and not target.exists():  # killed while it was put
            old.rename(target)
        for left in (
            old,
            *target.parent.glob(f".tmp-{target.name}-{'?' * 8}"),
        ):  # eight: no other data set's
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f".tmp-{target.name}-", dir=target.parent))
        yield folder
    except OSError as error:
        reason = error.strerror or error
        raise CrkdError(
            f"cannot write {target}: {reason}; free some space or give another --data-root"
        ) from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def put(folder: Path, target: Path) -> None:
    """Puts a temporary folder in the place of `target`, which stays where that fails."""
    folder.chmod(0o755)
    old = _old(target)
    if target.exists():
        target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.with_name(f".tmp-{target.name}-old")


def create_output_folder(folder: Path, option: str) -> None:
    """Creates the output `folder` before the work, so that nothing is lost for want of a place. Raises CrkdError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CrkdError(
            f"cannot write to {folder}: {error.strerror or error}; give another with {option}"
        ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
