"""A damaged input and the commands that meet it; the faults that they show."""

import hashlib
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.reliability import commands
from tests.reliability.commands import GB, Outcome
from tests.reliability.workspace import Workspace

MAX_MEMORY = 2 * GB


@dataclass(frozen=True)
class Fault:
    """Something that no input may cause."""

    kind: str  # traceback, crash, hang, memory, exit code, no reason, leftover, silent
    what: str


@dataclass
class Trial:
    """One damaged input (or a folder of them) in a folder of its own."""

    work: Workspace
    folder: Path
    draw: random.Random
    intact: bool = False  # nothing is damaged: this trial gives the reference
    faults: list[Fault] = field(default_factory=list)
    inputs: int = 1

    def crkd(self, arguments: Sequence[object], seconds: float = commands.SECONDS) -> Outcome:
        """Run a command, and note its faults."""
        outcome = commands.run(arguments, self.folder, seconds)
        line = f"crkd {' '.join(map(str, arguments))}"
        for kind, reason in judge(outcome, self.folder):
            self.faults.append(Fault(kind, f"{reason}; {line}"))
        if self.intact and outcome.code:
            self.faults.append(Fault("reference", f"{outcome.stderr}; {line}"))
        return outcome

    def copy(self, source: Path, name: str) -> Path:
        """Copy a folder of the workspace into the trial."""
        target = self.folder / name
        shutil.copytree(source, target)
        return target


def judge(outcome: Outcome, folder: Path) -> list[tuple[str, str]]:
    """Return the kinds of faults of a command, each with a reason."""
    faults = []
    last = outcome.stderr.strip().splitlines()[-1:] or [""]
    if outcome.hung:
        faults.append(("hang", f"killed after {outcome.seconds:.0f} s"))
    elif outcome.code < 0:
        faults.append(("crash", f"signal {-outcome.code}: {last[0]}"))
    elif "Traceback (most recent call last)" in outcome.stderr:
        faults.append(("traceback", last[0]))
    elif outcome.code not in (0, 1, 2):
        faults.append(("exit code", f"{outcome.code}: {last[0]}"))
    elif outcome.code and "error" not in outcome.stderr.lower():
        faults.append(("no reason", f"{outcome.code}: {last[0]}"))
    if "Warning:" in outcome.stderr:
        faults.append(("warning", next(w for w in outcome.stderr.splitlines() if "Warning:" in w)))
    if outcome.memory > MAX_MEMORY or "not enough memory" in outcome.stderr:
        faults.append(("memory", f"{outcome.memory / GB:.1f} GB: {last[0]}"))
    if not outcome.hung and outcome.code >= 0 and (left := list(folder.rglob(".tmp-*"))):
        faults.append(("leftover", str(left[0])))
    return faults


def digest(*paths: Path) -> str:
    """Return a digest of files, and of all files in folders with their names."""
    total = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                name = file.relative_to(path) if path.is_dir() else ""
                total.update(f"{name}:".encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()
