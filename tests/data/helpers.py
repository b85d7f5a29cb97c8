"""What several tests of raw folders need."""

import os
import signal
import sys
from pathlib import Path

from crkd_cli.data.cases import RawCase
from crkd_cli.errors import CrkdError


def make_files(root: Path, *names: str) -> Path:
    """Create empty files below `root`: their names are all that counts."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def describe_process(case: RawCase) -> tuple[str, int, bool, str | None]:
    """Return the id, the process that is called, whether it has loaded torch, and its threads.

    The ids "error" and "killed" do what they say.
    """
    if case.id == "error":
        raise CrkdError("error: this case is damaged", details=["more"])
    if case.id == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return case.id, os.getpid(), "torch" in sys.modules, os.environ.get("OMP_NUM_THREADS")
