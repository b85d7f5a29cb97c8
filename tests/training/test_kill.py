"""Killed without warning at random moments and started again: the same weights, bit for bit."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crkd_cli.runtime import checkpoint as checkpoints
from crkd_cli.training.plan import Plan

pytestmark = pytest.mark.slow

KILLS = 6  # for each of 2D and 3D
STEPS = 120


def command(root: Path, out: str) -> subprocess.Popen[bytes]:
    args = [
        "train",
        "--dataset",
        "toy",
        "--config",
        root / "config.yaml",
        "--split",
        root / "split.yaml",
        "--out",
        root / out,
    ]
    sets = [
        f"train.steps={STEPS}",
        "train.save_minutes=0",
        "train.log_every=1",
        "train.eval_every=40",
    ]
    args += [
        "--data-root",
        root / "data",
        "--quiet",
        *(part for s in sets for part in ("--set", s)),
    ]
    return subprocess.Popen([sys.executable, "-m", "crkd_cli", *map(str, args)])


def logged(folder: Path) -> int:
    file = folder / "log.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def test_killed_and_resumed_is_bit_equal(tiny: Callable[..., Plan], tmp_path: Path) -> None:
    tiny()
    whole = command(tmp_path, "whole")
    assert whole.wait(timeout=300) == 0
    chance = random.Random(0)
    folder = tmp_path / "killed"
    kills, done = 0, 0
    while kills < KILLS:
        process = command(tmp_path, "killed")
        while logged(folder) <= done + 2 and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.4))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kills += 1
        done = checkpoints.load_checkpoint(
            folder / "last.pth"
        ).step  # whatever moment it was: there is a whole checkpoint
    assert kills == KILLS, f"the run ended after {kills} kills: too few steps for this machine"
    last = command(tmp_path, "killed")
    assert last.wait(timeout=300) == 0
    for name in ("last.pth", "best.pth"):
        one, two = (
            checkpoints.load_checkpoint(tmp_path / out / name) for out in ("whole", "killed")
        )
        assert one.step == two.step
        assert one.best == two.best
        assert all(torch.equal(value, two.weights[key]) for key, value in one.weights.items())
    assert not list(folder.glob(".tmp-*"))
    steps = [
        json.loads(line)["step"]
        for line in (folder / "log.jsonl").read_text().splitlines()
        if "total" in json.loads(line)
    ]
    assert steps == list(range(1, STEPS + 1))


WRITER = """
import sys, pathlib, dataclasses, torch
from crkd_cli.runtime import checkpoint
path = pathlib.Path(sys.argv[1])
one = checkpoint.load_checkpoint(path)
one.weights["ballast"] = torch.rand(2_000_000)
step = one.step
while True:
    step += 1
    checkpoint.save_checkpoint(dataclasses.replace(one, step=step), path)
"""


def test_a_kill_while_a_checkpoint_is_written_leaves_a_whole_one(
    tiny: Callable[..., Plan], tmp_path: Path
) -> None:
    tiny()
    first = command(tmp_path, "run")
    while not (tmp_path / "run" / "last.pth").is_file():
        time.sleep(0.05)
    first.kill()
    first.wait()
    path = tmp_path / "run" / "last.pth"
    chance = random.Random(1)
    cut = 0
    for _ in range(3):
        before = checkpoints.load_checkpoint(path).step
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        while not list(path.parent.glob(".tmp-*")):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.wait()
        cut += bool(list(path.parent.glob(".tmp-*")))
        assert checkpoints.load_checkpoint(path).step >= before
        for leftover in path.parent.glob(".tmp-*"):
            leftover.unlink()
    assert cut, "no kill fell into a write"
