"""The run folder: which checkpoint is its result, and the lock that keeps it to one process."""

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


def find_checkpoints(path: Path) -> list[Path]:
    """Return the checkpoints or run folders that `path` stands for.

    That is `path` itself or, if there is no such file or folder, the runs PATH-seed1337,
    PATH-seed1338, … that `crkd train --out PATH --seeds` makes.
    """
    if path.exists():
        return [path]
    seeds = {}
    for folder in path.parent.glob("*"):
        match = re.fullmatch(re.escape(path.name) + r"-seed(\d+)", folder.name)
        if match and folder.is_dir():
            seeds[int(match[1])] = folder
    return [seeds[seed] for seed in sorted(seeds)] or [path]


def newest_checkpoint(runs: Path) -> Path:
    """Return the result of the run under `runs` that was written to last. Raises CrkdError."""
    files = [file for name in ("best.pth", "last.pth") for file in runs.glob(f"*/{name}")]
    if not files:
        raise CrkdError(
            f"no checkpoint under {runs}; train first (crkd train) or give one with --checkpoint"
        )
    newest = max(files, key=lambda file: file.stat().st_mtime)
    return result_checkpoint(newest.parent)


def lock_run_folder(folder: Path) -> "FileLock":
    """Keep other processes from training in `folder` until `locks.release` or the end of this one.

    Raises UsageError if another process trains there, CrkdError if the folder cannot be written.
    """
    return lock_output(folder, "--out", "is training in")
