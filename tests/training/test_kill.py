"""Killed without warning at random moments and restarted: the same weights, bit for bit."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crkd_cli.runtime.checkpoint import load_checkpoint
from tests.command_server import Command, CommandServer
from tests.training.helpers import Planner, assert_equal, logged, train_arguments

pytestmark = pytest.mark.slow

KILLS = 4  # for each of 2D and 3D
STEPS = 48
SAVE_EVERY_STEP = "train.save_minutes=0"


def start(crkd: CommandServer, root: Path, out: str, *sets: str) -> Command:
    settings = (f"train.steps={STEPS}", "train.log_every=1", "train.eval_every=24", *sets)
    return crkd.start([*train_arguments(root, *settings, out=out), "--quiet"], root)


def count_lines(folder: Path) -> int:
    file = folder / "log.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def test_killed_and_resumed_is_bit_equal(
    tiny: Planner, crkd: CommandServer, tmp_path: Path
) -> None:
    tiny()
    assert start(crkd, tmp_path, "whole").wait().code == 0
    folder = tmp_path / "killed"
    kills = kill_repeatedly(crkd, tmp_path, folder)
    assert kills == KILLS, f"the run ended after {kills} kills: too few steps for this machine"

    assert start(crkd, tmp_path, "killed").wait().code == 0
    for name in ("last.pth", "best.pth"):
        whole, killed = (load_checkpoint(tmp_path / out / name) for out in ("whole", "killed"))
        assert killed.step == whole.step
        assert killed.best == whole.best
        assert_equal(killed.weights, whole.weights)
    assert not list(folder.glob(".tmp-*"))
    assert list(logged(folder, "total")) == list(range(1, STEPS + 1))


def kill_repeatedly(crkd: CommandServer, root: Path, folder: Path) -> int:
    """Start the run and kill it KILLS times; every kill leaves a complete checkpoint."""
    draw = random.Random(0)
    done = 0
    for kills in range(KILLS):
        run = start(crkd, root, folder.name, SAVE_EVERY_STEP)
        steps = done + draw.randint(2, 5)
        while count_lines(folder) <= steps and not run.ended():
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.4))
        if run.ended():
            run.wait()
            return kills
        run.send(signal.SIGKILL)
        assert run.wait().code == -signal.SIGKILL
        done = load_checkpoint(folder / "last.pth").step
    return KILLS


WRITER = """
import sys, pathlib, dataclasses, torch
from crkd_cli.runtime import checkpoint
path = pathlib.Path(sys.argv[1])
state = checkpoint.load_checkpoint(path)
state.weights["ballast"] = torch.rand(2_000_000)
step = state.step
while True:
    step += 1
    checkpoint.save_checkpoint(dataclasses.replace(state, step=step), path)
"""


def test_a_kill_during_a_write_leaves_a_complete_checkpoint(
    tiny: Planner, crkd: CommandServer, tmp_path: Path
) -> None:
    tiny()
    path = tmp_path / "run" / "last.pth"
    first = start(crkd, tmp_path, "run", SAVE_EVERY_STEP)
    while not path.is_file():
        time.sleep(0.05)
    first.send(signal.SIGKILL)
    first.wait()

    draw = random.Random(1)
    interrupted_writes = 0
    for _ in range(3):
        before = load_checkpoint(path).step
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        while not list(path.parent.glob(".tmp-*")):
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.wait()
        leftovers = list(path.parent.glob(".tmp-*"))
        interrupted_writes += bool(leftovers)
        assert load_checkpoint(path).step >= before
        for leftover in leftovers:
            leftover.unlink()
    assert interrupted_writes, "no kill fell into a write"
