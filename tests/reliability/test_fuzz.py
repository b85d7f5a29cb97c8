"""No input of any kind may cause a traceback, a crash, a hang, or a result that differs silently.

The fuzzer runs in a process of its own, because it forks: see `fuzz.py`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.commands import GB, Outcome
from tests.reliability.trial import judge

CHECKOUT = Path(__file__).parents[2]
INPUTS = 600


def run_module(name: str, folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start a program of this folder, which keeps temporary files in `folder`."""
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(CHECKOUT),
        "TMPDIR": str(folder),
    }
    command = [sys.executable, "-m", f"tests.reliability.{name}", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=CHECKOUT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_damaged_inputs(tmp_path: Path) -> None:
    """In two processes, with other seeds."""
    running = []
    for seed in (0, 1):
        options = ("--inputs", INPUTS // 2, "--seed", seed, "--keep", tmp_path / "faults")
        running.append(run_module("fuzz", tmp_path / str(seed), *options))
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(outputs)


def outcome(code: int = 0, stderr: str = "", memory: int = 0, *, hung: bool = False) -> Outcome:
    return Outcome(code, 1.0, memory, "", stderr, hung)


@pytest.mark.parametrize(
    ("ended", "kinds"),
    [
        (outcome(), []),
        (outcome(1, "error: x.png is empty; copy it again\n"), []),
        (outcome(1, "Traceback (most recent call last):\n  …\nKeyError: 'x'\n"), ["traceback"]),
        (outcome(-11), ["crash"]),
        (outcome(-9, hung=True), ["hang"]),
        (outcome(3, "error: x"), ["exit code"]),
        (outcome(1, "Aborted."), ["no reason"]),
        (outcome(0, "a.py:1: UserWarning: x"), ["warning"]),
        (outcome(0, memory=3 * GB), ["memory"]),
        (outcome(1, "error: not enough memory; free some"), ["memory"]),
    ],
)
def test_every_kind_of_fault_is_seen(ended: Outcome, kinds: list[str], tmp_path: Path) -> None:
    assert [kind for kind, _ in judge(ended, tmp_path)] == kinds


def test_leftovers_are_seen(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".tmp-abcdefgh-x.png").touch()
    assert [kind for kind, _ in judge(outcome(), tmp_path)] == ["leftover"]


WATCHED = """
import os, signal, sys, time
from pathlib import Path
import crkd_cli.cli
from tests.reliability import commands

def main():
    what = sys.argv[1]
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "hang":
        time.sleep(60)
    elif what == "memory":
        bytearray(2300 << 20)
    elif what == "traceback":
        raise KeyError("x")
    elif what == "limit":
        bytearray(100 << 30)

crkd_cli.cli.main = main
folder = Path(sys.argv[1])
for what in ("fine", "crash", "hang", "memory", "traceback", "limit"):
    ended = commands.run([what], folder, seconds=1.0 if what == "hang" else 60.0)
    last = ended.stderr.strip().splitlines()[-1:]
    print(what, ended.code, ended.hung, ended.memory > 2 << 30, *last)
"""


@pytest.mark.slow
def test_commands_are_watched_from_outside(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", WATCHED, str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == [
        "fine 0 False False",
        "crash -11 False False",
        "hang -9 True False",
        "memory 0 False True",
        "traceback 1 False False KeyError: 'x'",
        "limit 1 False False MemoryError",
    ]
