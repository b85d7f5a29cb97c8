"""The run folder: which checkpoint is its result, and the lock that keeps it to one process.

The runs of a cross-validation are in subfolders of one folder: fold1, fold2 …
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from crkd_cli.errors import CrkdError
from crkd_cli.locks import lock_output

if TYPE_CHECKING:
    from filelock import FileLock


def result_checkpoint(run: Path) -> Path:
    """Return the result of a run: best.pth if there is one, else last.pth."""
    best = run / "best.pth"
    return best if best.is_file() else run / "last.pth"


def fold_folder(folder: Path, number: int) -> Path:
    """Return the run folder of a fold in the folder of all folds."""
    return folder / f"fold{number}"


def fold_folders(folder: Path) -> list[Path]:
    """Return the runs of the folds in `folder` by number; none if it is itself a run folder."""
    if result_checkpoint(folder).is_file():
        return []
    return _numbered(folder, "fold")


def find_checkpoints(path: Path) -> list[Path]:
    """Return the checkpoints or run folders that `path` stands for.

    That is `path` itself or, if there is no such file or folder, the runs PATH-seed1337,
    PATH-seed1338, … that `crkd train --out PATH --seeds` makes. A folder of folds stands for the
    folds.
    """
    runs = [path] if path.exists() else _numbered(path.parent, f"{path.name}-seed")
    return [fold for run in runs for fold in fold_folders(run) or [run]] or [path]


def newest_checkpoint(runs: Path) -> Path:
    """Return the result under `runs` that was written to last. Raises CrkdError.

    This is a checkpoint, or a folder of folds.
    """
    names = ("best.pth", "last.pth")
    files = [
        file for name in names for file in (*runs.glob(f"*/{name}"), *runs.glob(f"*/fold*/{name}"))
    ]
    if not files:
        raise CrkdError(
            f"no checkpoint under {runs}; train first (crkd train) or give one with --checkpoint"
        )
    newest = max(files, key=lambda file: file.stat().st_mtime)
    if newest.parent.parent != runs:
        return newest.parent.parent
    return result_checkpoint(newest.parent)


def lock_run_folder(folder: Path) -> "FileLock":
    """Keep other processes from training in `folder` until `locks.release` or the end of this one.

    Raises UsageError if another process trains there, CrkdError if the folder cannot be written.
    """
    return lock_output(folder, "--out", "is training in")


def _numbered(parent: Path, start: str) -> list[Path]:
    """Return the folders in `parent` whose name is `start` and a number, by number."""
    found = {}
    for folder in parent.glob("*"):
        match = re.fullmatch(re.escape(start) + r"(\d+)", folder.name)
        if match and folder.is_dir():
            found[int(match[1])] = folder
    return [found[number] for number in sorted(found)]
