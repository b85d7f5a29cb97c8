"""Where things lie: packaged configurations and splits, the data root, and atomic writes."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crkd_cli.errors import CrkdError


def packaged(folder: str) -> Path:
    """`configs` or `splits`: inside an installed wheel, else beside the package in a checkout."""
    package = Path(__file__).parent
    installed = package / folder
    return installed if installed.is_dir() else package.parent / folder


def data_root(given: Path | None = None) -> Path:
    """--data-root, else $CRKD_DATA, else ./data. Holds raw/NAME and prepared/NAME."""
    return given or Path(os.environ.get("CRKD_DATA") or "data")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that replaces it when the block ends well and vanishes when it does not.

    The content is synced before the rename, so a crash leaves the old file or the new one, never half of either.
    Raises CrkdError, with the path, when the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays last: writers choose the format by it.
        handle, name = tempfile.mkstemp(prefix=".tmp-", suffix="-" + path.name, dir=path.parent)
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


def make_folder(folder: Path, option: str) -> None:
    """Creates the output `folder` before the work, so that nothing is lost for want of a place. Raises CrkdError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CrkdError(f"cannot write to {folder}: {error.strerror or error}; give another with {option}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
