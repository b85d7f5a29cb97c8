"""`crkd doctor`: what it prints, and what it takes for a problem."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crkd_cli.config import build_config
from crkd_cli.methods import METHODS
from crkd_cli.runtime import machine
from crkd_cli.training.trial import SPEC, random_batch, time_step
from tests.conftest import CHECKOUT, tiny_config

CPU, FILE = torch.device("cpu"), Path("run.yaml")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_healthy_machine(cli, here):
    result = cli("doctor", "--device", "cpu")
    assert result.exit_code == 0, result.output
    rows = result.stdout.splitlines()
    assert max(map(len, rows)) <= 80
    names = [row[2:12].strip() for row in rows]
    assert [name for name in names if name] == [
        *("crkd", "libraries", "memory", "data root", "runs", "device", "threads", "step")
    ]
    assert not [row for row in rows if row.startswith("!")]
    assert f"torch {torch.__version__}," in result.stdout
    assert "8 labeled and 8 unlabeled images of 64 × 64" in result.stdout
    assert result.stderr.splitlines()[-1] == "ready to train"
    assert list(here.iterdir()) == []


def test_problems_are_marked_and_end_with_exit_code_1(cli, here):
    (here / "file").touch()
    result = cli("doctor", "--device", "cuda:99", "--data-root", "file/data")
    assert result.exit_code == 1
    marked = [row.split()[1] for row in result.stdout.splitlines() if row.startswith("! ")]
    assert marked == ["data", "device"]
    assert result.stderr.splitlines()[-3:] == [
        "error: 2 problems would stop training:",
        f"  data root: cannot write to {here}/file: Not a directory; make it writable, or give "
        "another folder with --data-root",
        f"  device: device 'cuda:99' does not exist: {torch.cuda.device_count()} CUDA devices "
        "found; use --device cpu",
    ]


def test_too_little_memory_and_disk_are_problems(cli, monkeypatch):
    """With limits that no machine reaches."""
    monkeypatch.setattr(machine, "MIN_MEMORY", 10**18)
    monkeypatch.setattr(machine, "MIN_DISK", 10**18)
    result = cli("doctor", "--device", "cuda:99")
    assert result.exit_code == 1
    problems = [line for line in result.stderr.splitlines() if line.startswith("  ")]
    assert [line.partition(": ")[0].strip() for line in problems] == [
        *("memory", "data root", "runs", "device")
    ]
    assert problems[0].endswith(" of memory are free; close other programs")
    assert problems[2].endswith(
        " is almost full; free some space, or give another folder with --out"
    )


@pytest.mark.slow
def test_a_broken_pytorch_is_one_line(here):
    """As if a library of CUDA were missing."""
    (here / "torch").mkdir()
    (here / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.99: not found')")
    path = os.pathsep.join([str(here), str(CHECKOUT)])
    command = [sys.executable, "-m", "crkd_cli", "doctor"]
    result = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, cwd=here
    )
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "loading PyTorch",
        "error: 1 problem would stop training:",
        "  device: PyTorch cannot be loaded (libcudart.so.99: not found); reinstall it",
    ]


def test_quiet_prints_only_problems(cli):
    result = cli("doctor", "--device", "cuda:99", "-q")
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 2


def test_prepared_datasets_are_named(make_store, here):
    make_store("toy", groups=1)
    make_store("other", groups=1)
    finding = machine.check_data_root(here / "data")
    assert finding.text.endswith(" GB free, writable; prepared: other, toy")
    assert not finding.problem


@pytest.mark.parametrize("method", ["supervised", "mean_teacher", "crkd"])
def test_a_batch_has_what_the_method_asks_for(method):
    """As `Method.unlabeled_streams` and `Method.strong_views` say."""
    config = build_config({**tiny_config(2), "method": method}, FILE)
    batch = random_batch(config, CPU)
    method_class = METHODS[method]
    unlabeled = [part for part in (batch.unlabeled, batch.partners) if part is not None]
    assert len(unlabeled) == method_class.unlabeled_streams
    assert all(len(part.strong) == method_class.strong_views for part in unlabeled)
    assert batch.labeled.image.shape == (2, SPEC.channel_count, 32, 32)
    assert {*batch.labeled.label.unique().tolist()} == {0, 1, 2, 3}


def test_a_step_is_timed_and_checked():
    trial = time_step(build_config(tiny_config(2), FILE, ["method=supervised"]), CPU)
    assert 0 < trial.seconds < 10
    assert trial.is_finite


def test_a_step_that_is_not_finite_is_noticed():
    """Such a learning rate makes the weights overflow."""
    overrides = ["method=supervised", "train.lr=1e6", "train.momentum=0"]
    assert not time_step(build_config(tiny_config(2), FILE, overrides), CPU).is_finite
