"""`crkd train --seeds --parallel`: the runs of one command in processes that share a device."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main
from filelock import FileLock
from typer.testing import Result

from crkd_cli import __version__, world
from crkd_cli.cli import app
from crkd_cli.cli.bars import progress, run_output
from crkd_cli.cli.options import given_options
from crkd_cli.methods.crkd import Crkd
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.runtime.run_folder import lock_run_folder
from crkd_cli.training import batches
from crkd_cli.training.batches import build_loader
from crkd_cli.training.parallel import RunsFailedError, run_parallel
from tests.training.helpers import Planner, assert_equal, set_options, train_arguments, weights
from tests.training.processes import launch_crkd, wait_for_steps

Cli = Callable[..., Result]
in_2d = pytest.mark.parametrize("dims", [2], indirect=True)
ENDLESS = ("train.steps=100000", "train.log_every=1", "train.eval_every=100000")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let all processes round the same way: that depends on the number of threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def line(tiny: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of `crkd train` for small runs, with relative paths."""
    tiny()
    monkeypatch.chdir(tmp_path)
    return train_arguments(Path(), "train.steps=3", "train.log_every=1")


def lines_of(stderr: str, seed: int) -> list[str]:
    """The lines of one run, without their prefix and their rates."""
    return re.findall(rf"^seed {seed}: (.*)$", without_rates(stderr), flags=re.MULTILINE)


def without_rates(text: str) -> str:
    return re.sub(r"[\d.]+ (steps/s|s/step|s left|min left)", r"\1", text)


@pytest.mark.slow
def test_one_after_the_other_despite_failures() -> None:
    """Any `crkd` commands will do. The exit code is that of the first failure."""
    lines: list[tuple[str, str | None]] = []
    commands = {"a": ["--version"], "b": ["no-command"], "c": ["compare", "nowhere"]}
    with pytest.raises(RunsFailedError, match=r"^2 of 3 runs failed \(b, c\); rerun ") as failure:
        run_parallel(commands, 1, lambda name, line: lines.append((name, line)))
    assert failure.value.exit_code == 2
    assert lines[:2] == [("a", f"crkd {__version__}"), ("a", None)]
    usage, reason = lines[2], lines[-5:-2]
    assert str(usage[1]).startswith("Usage: ")
    assert reason[1:] == [("b", "error: ended with exit code 2"), ("b", None)]
    (name, error), end = lines[-2:]
    assert name == "c"
    assert str(error).startswith("error: ")
    assert "nowhere" in str(error)
    assert end == ("c", None)


VALUES = {"stop_after": ["7"], "fold": ["2"], "folds": [], "quiet": [], "verbose": []}


def test_every_option_is_handed_on() -> None:
    """Parsed again, the words mean the same."""
    command = typer.main.get_command(app).commands["train"]
    words: list[str] = []
    for option in (parameter for parameter in command.params if parameter.name != "parallel"):
        value = VALUES.get(option.name, ["-a b=c"])
        words += [option.opts[0], *value] * (2 if option.name == "sets" else 1)
    context = command.make_context("train", [*words, "--parallel", "3"])
    repeated = command.make_context("train", given_options(context, "--parallel"))
    assert repeated.params == {**context.params, "parallel": 1}
    assert None not in context.params.values()
    assert context.params["sets"] == ["-a b=c"] * 2


@in_2d
@pytest.mark.slow
def test_every_failed_run_is_reported(cli: Cli, line: list[str], tmp_path: Path) -> None:
    folders = [tmp_path / f"run-seed{seed}" for seed in (7, 8)]
    with lock_run_folder(folders[0]), lock_run_folder(folders[1]):
        result = cli(*line, "--seeds", "7,8", "--method", "supervised", "--parallel", 3)
    assert result.exit_code == 2
    for seed in (7, 8):
        loading, data, run, network, problem = lines_of(result.stderr, seed)
        assert loading == "loading PyTorch"
        assert data.startswith("data: data/prepared/toy, split tiny: ")
        assert run == f"run: run-seed{seed}, method supervised, configuration config.yaml"
        assert network == "network: unet; augmentation: published"
        assert problem.startswith(f"error: another process is training in run-seed{seed}; ")
    first, last = [text for text in result.stderr.splitlines() if not text.startswith("seed ")]
    assert first == "loading PyTorch"
    assert re.match(r"error: 2 of 2 runs failed \(seed [78], seed [78]\); rerun ", last)


@in_2d
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--parallel", "2"], ["--parallel", "--seeds"]),
        (["--parallel", "0", "--seeds", "1,2"], ["--parallel"]),
        (["--parallel", "2", "--seeds", "1,-2"], ["train.seed", "from 0"]),
    ],
)
def test_mistakes_are_reported_before_any_run_starts(
    cli: Cli, line: list[str], options: list[str], words: list[str]
) -> None:
    result = cli(*line, *options)
    assert result.exit_code == 2
    assert all(word in result.stderr for word in words), result.stderr
    assert not list(Path().glob("run*"))


@in_2d
@pytest.mark.slow
def test_not_under_torchrun(line: list[str], tmp_path: Path) -> None:
    processes = launch_crkd(tmp_path / "log", *line, "--seeds", "1,2", "--parallel", "2")
    assert processes.wait() != 0
    (error,) = processes.errors()
    assert "--parallel does not work with torchrun" in error


@in_2d
def test_runs_at_once_share_the_cache(tiny: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, rng = tiny(), np.random.default_rng(0)
    monkeypatch.setattr(batches, "CACHE_BYTES", 4 * 32 * 32 * 4)  # four of the five images
    for runs, expected in (("1", 4), ("2", 2)):
        monkeypatch.setenv(world.RUNS, runs)
        loader = build_loader(plan.config, plan.store, plan.split, Crkd, torch.device("cuda"))
        images = loader.unlabeled[0].dataset
        kept = [images.item(k, rng) is images.item(k, rng) for k in range(len(images))]
        assert kept.count(True) == expected


def test_progress_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars are made from the lines that the runs print; every other line is printed above them."""
    pipe, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stderr", pipe)
    with progress("training", 40, "steps", 30) as advance:
        advance(10, "total 0.5")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with run_output(["seed 7", "seed 8"]) as show:
        show("seed 8", "loading PyTorch")
        show("seed 8", pipe.getvalue().rstrip())
        time.sleep(0.2)
        show("seed 8", None)
    text = terminal.getvalue()
    assert "seed 8: loading PyTorch" in text
    assert re.search(r"seed 8 \S+ +40/40 .*total 0\.5", text)
    assert "training" not in text
    assert "seed 7" not in text


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@in_2d
@pytest.mark.slow
def test_a_failed_run_does_not_end_the_others(
    cli: Cli, line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others share the threads that a run by itself has."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(5)
    command = [*line, "--method", "supervised", "--seeds", "7,8,9", "--parallel", 2]
    with lock_run_folder(Path("run-seed8")):
        result = cli(*command)
    assert result.exit_code == 2
    problem = "error: another process is training in run-seed8; "
    assert [text.startswith(problem) for text in lines_of(result.stderr, 8)].count(True) == 1
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: 1 of 3 runs failed (seed 8); rerun the same command")
    for seed in (7, 9):
        assert load_checkpoint(Path(f"run-seed{seed}/last.pth")).step == 3
        lines = lines_of(result.stderr, seed)
        assert "device: CPU (2 threads), fp32" in lines
        assert lines[-1].startswith("done: ")
    assert not Path("run-seed8/last.pth").exists()
    again = cli(*command[:-2])
    assert again.exit_code == 0
    assert again.stderr.count("this run is finished (3 steps)") == 2


@in_2d
@pytest.mark.slow
def test_runs_equal_those_trained_one_by_one(cli: Cli, line: list[str], my_method: Path) -> None:
    """Files, weights and lines; with a method of the user, by a relative path."""
    options = ["--method", f"./{my_method.name}", "--device", "cpu", "--stop-after", 2]
    several = cli(*line, *options, "--seeds", "7,8", "--parallel", 2, "--out", "several/run")
    assert several.exit_code == 0, several.stderr
    for seed in (7, 8):
        alone = cli(*line, *options, "--seeds", seed, "--out", "alone/run")
        assert alone.exit_code == 0, alone.stderr
        expected = without_rates(alone.stderr).replace("alone", "several").splitlines()
        assert lines_of(several.stderr, seed) == expected
        folders = [Path(name) / f"run-seed{seed}" for name in ("several", "alone")]
        files = [sorted(file.name for file in folder.iterdir()) for folder in folders]
        assert files[0] == files[1]
        assert len({(folder / "config.yaml").read_text() for folder in folders}) == 1
        for name in ("last.pth", "best.pth"):
            assert_equal(weights(folders[0], name), weights(folders[1], name))
    quiet = cli(
        *line, *options[:-2], "--seeds", "7,8", "--parallel", 2, "--out", "several/run", "-q"
    )
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert load_checkpoint(Path("several/run-seed8/last.pth")).step == 3


@in_2d
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "receivers"),
    [
        (signal.SIGINT, 130, "command"),
        (signal.SIGKILL, -9, "command"),
        (signal.SIGUSR1, 138, "all"),
        (signal.SIGTERM, 143, "all"),
    ],
)
def test_a_signal_saves_and_ends_all_runs(
    cli: Cli, line: list[str], number: signal.Signals, code: int, receivers: str
) -> None:
    """Even SIGKILL to the command, and a signal that a batch system sends to all processes."""
    command = [*line, *set_options(ENDLESS), "--seeds", "1,2,3"]
    program = [sys.executable, "-m", "crkd_cli", *command, "--parallel", "2"]
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    folders = [Path(f"run-seed{seed}") for seed in (1, 2)]
    for folder in folders:
        wait_for_steps(folder, 3)
    pids = [process.pid]
    if receivers == "all":
        pids += runs_of(process)
        assert len(pids) == 3
    for pid in pids:
        os.kill(pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    if code > 0:
        assert stderr.count("error: ") == 1
        assert stderr.splitlines()[-1] == (
            f"error: stopped by {number.name}; everything is saved; rerun the same command to "
            "resume"
        )
    assert not Path("run-seed3").exists()
    for folder in folders:
        wait_for_lock(folder)
        step = load_checkpoint(folder / "last.pth").step
        assert step >= 3
    resumed = cli(*command[:-1], "2", "--stop-after", step + 1)
    assert resumed.exit_code == 0, resumed.stderr
    assert f"resuming after step {step}" in resumed.stderr


def runs_of(command: subprocess.Popen[str]) -> list[int]:
    """Return the process IDs of the runs that `command` trains."""
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


def wait_for_lock(folder: Path) -> None:
    """Wait until no process trains in `folder`."""
    with FileLock(folder / ".lock", timeout=30):
        pass


@in_2d
@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(line: list[str]) -> None:
    command = [*line, *set_options(ENDLESS), "--seeds", "1,2", "--parallel", "2"]
    # A shell lets its background jobs ignore Ctrl-C, and these tests may be one.
    program = ["env", "--default-signal=INT", sys.executable, "-m", "crkd_cli", *command]
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    wait_for_steps(Path("run-seed1"), 1)
    for run in runs_of(process):
        os.kill(run, signal.SIGSTOP)  # so that they cannot end after the first
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted"
