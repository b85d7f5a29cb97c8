"""`crkd train --seeds`: several runs of one command, stopped and resumed together."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from crkd_cli.runtime.checkpoint import load_checkpoint, save_checkpoint
from crkd_cli.training import loop
from tests.command_server import CommandServer
from tests.training.helpers import Planner, assert_equal, set_options, train_arguments, weights


@pytest.fixture
def line(tiny: Planner, tmp_path: Path) -> list[str]:
    """The arguments of `crkd train` for small runs, without --out and --seeds."""
    tiny()
    config = tmp_path / "config.yaml"
    tree = yaml.safe_load(config.read_text())
    tree["train"] |= {"steps": 4, "log_every": 1, "eval_every": 4}
    config.write_text(yaml.safe_dump(tree))
    return train_arguments(tmp_path, out=None)


def modified(folder: Path) -> int:
    return (folder / "last.pth").stat().st_mtime_ns


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2], indirect=True)
def test_one_folder_for_every_seed(
    cli: Callable[..., Result], line: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "runs" / "a.b"  # .b must not be taken for a suffix
    first = cli(*line, "--out", out, "--seeds", "7,8")
    assert first.exit_code == 0, first.stderr
    folders = [tmp_path / "runs" / f"a.b-seed{seed}" for seed in (7, 8)]
    assert sorted(out.parent.iterdir()) == folders
    checkpoints = [load_checkpoint(folder / "last.pth") for folder in folders]
    assert [checkpoint.config.train.seed for checkpoint in checkpoints] == [7, 8]
    assert f"all 2 runs are done: {folders[0]} {folders[1]}" in first.stderr
    before = [modified(folder) for folder in folders]
    again = cli(*line, "--out", out, "--seeds", "7,8")
    assert again.exit_code == 0
    assert again.stderr.count("this run is finished (4 steps)") == 2
    assert [modified(folder) for folder in folders] == before
    more = cli(*line, "--out", out, "--seeds", "8,9", "--quiet")
    assert (more.exit_code, more.stderr) == (0, "")
    assert modified(folders[1]) == before[1]
    alone = cli(*line, "--out", tmp_path / "alone", "--set", "train.seed=9")
    assert alone.exit_code == 0
    assert_equal(weights(tmp_path / "runs" / "a.b-seed9"), weights(tmp_path / "alone"))


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_the_default_folder(
    cli: Callable[..., Result], line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli(*line, "--seeds", "3", "--method", "supervised").exit_code == 0
    assert (tmp_path / "runs" / "toy-supervised-2-seed3" / "last.pth").is_file()


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_signal_in_the_last_step_ends_the_command(
    cli: Callable[..., Result], line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_late(*args: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        save_checkpoint(*args)

    monkeypatch.setattr(loop, "save_checkpoint", save_late)
    options = ("--out", tmp_path / "run", "--seeds", "1,2", "--method", "supervised")
    result = cli(*line, *options, "--set", "train.steps=1")
    assert result.exit_code == 143
    assert result.stderr.splitlines()[-1].startswith(
        "error: stopped by SIGTERM after step 1; everything is saved"
    )
    assert load_checkpoint(tmp_path / "run-seed1" / "last.pth").step == 1
    assert (tmp_path / "run-seed1" / "metrics.json").is_file()
    assert not (tmp_path / "run-seed2").exists()


@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.slow
def test_a_signal_stops_the_command_and_rerunning_resumes(
    line: list[str], crkd: CommandServer, tmp_path: Path
) -> None:
    options = ["--out", str(tmp_path / "run"), "--seeds", "1,2,3"]
    settings = set_options(("train.steps=60", "train.log_every=1"))
    command = [*line, *options, *settings]
    process = crkd.start(command, tmp_path)
    log = tmp_path / "run-seed2" / "log.jsonl"
    while not (log.is_file() and log.stat().st_size) and not process.ended():
        time.sleep(0.01)
    process.send(signal.SIGTERM)
    ended = process.wait()
    assert ended.code == 143, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: stopped by SIGTERM after step ")
    stopped = load_checkpoint(tmp_path / "run-seed2" / "last.pth").step
    assert 0 < stopped < 60
    assert not (tmp_path / "run-seed3").exists()
    finished = modified(tmp_path / "run-seed1")
    again = crkd.run(command, tmp_path)
    assert again.code == 0
    assert modified(tmp_path / "run-seed1") == finished
    assert f"resuming after step {stopped}" in again.stderr
    for seed in (1, 2, 3):
        assert load_checkpoint(tmp_path / f"run-seed{seed}" / "last.pth").step == 60


@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seeds", ""], ["--seeds ''", "whole numbers"]),
        (["--seeds", "1337,"], ["'1337,'", "whole numbers"]),
        (["--seeds", "1337 1338"], ["'1337 1338'", "whole numbers"]),
        (["--seeds", "1,2.5"], ["'1,2.5'", "whole numbers"]),
        (["--seeds", "1,2,01"], ["'1,2,01'", "names 1 twice"]),
        (["--seeds", "1," + "9" * 5000], ["999…'", "whole numbers"]),
        (["--seeds", "1,-2"], ["train.seed", "from 0 below 4294967296"]),
        (["--seeds", "1,2", "--out", "."], ["--out . has no name", "-seed"]),
        (
            ["--seeds", "1,2", "--set", "train.seed=3"],
            ["--set train.seed", "give one of them"],
        ),
    ],
)
def test_bad_lists(
    cli: Callable[..., Result],
    line: list[str],
    tmp_path: Path,
    options: list[str],
    words: list[str],
) -> None:
    result = cli(*line, "--out", tmp_path / "run", *options)
    assert result.exit_code == 2, result.stderr
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert all(word in error for word in words), error
    assert not list(tmp_path.glob("run*"))  # the first runs did not start either


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_conflict_with_a_later_run_is_reported_at_once(
    cli: Callable[..., Result], line: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert cli(*line, "--out", out, "--seeds", "2").exit_code == 0
    result = cli(*line, "--out", out, "--seeds", "1,2", "--set", "train.lr=0.5")
    assert result.exit_code == 2
    conflict = f"{out}-seed2 holds a run with other settings (train.lr = 0.01, now 0.5)"
    assert conflict in result.stderr
    assert not (tmp_path / "run-seed1").exists()
