"""Several processes: the gradients of the joint batch, one writer, a checkpoint at every end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from crkd_cli.config import Frame
from crkd_cli.methods import METHODS
from crkd_cli.runtime.checkpoint import load_checkpoint
from tests.command_server import CommandServer
from tests.training.helpers import CHECKOUT, Planner, logged, train_arguments, weights
from tests.training.processes import Processes, launch_crkd, run_two, wait_for_steps
from tests.training.ranks import IGNORING

pytestmark = pytest.mark.slow

Parts = tuple[dict[str, Any], list[dict[str, Any]]]
ENDLESS = ("train.steps=100000", "train.log_every=1", "train.eval_every=100000")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """The results of tests/training/ranks.py: of one process, and of each of two."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("ranks.py")
    processes = Processes(folder, script, folder)
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    subprocess.run([sys.executable, script, folder], check=True, env=environment)
    assert processes.wait() == 0, processes.stderr()
    joint = torch.load(folder / "1-0.pt")
    return joint, [torch.load(folder / f"2-{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", [*METHODS.names(), "cutmix", "semantic"])
def test_gradients_are_those_of_the_joint_batch(parts: Parts, dims: int, case: str) -> None:
    """Of every parameter, and every loss, to the rounding of fp32, in either process.

    Before a batch norm a bias has no gradient but rounding errors, as large as those of the terms
    that cancel: hence the second bound.
    """
    joint, _ = parts
    names = [name for name in joint if name.startswith(f"{case} {dims}D")]
    assert len(names) == (4 if case == "semantic" else 1)
    for name in names:
        check_gradients(parts, name)
    if case in ("crkd", "ad_mt", "cutmix"):
        assert 0.1 < joint[names[0]]["loss kept"] < 0.999


@pytest.mark.parametrize("name", IGNORING)
def test_ignored_pixels_are_counted_in_the_joint_batch(parts: Parts, name: str) -> None:
    check_gradients(parts, f"ignoring {name} 2D")
    joint, _ = parts
    assert joint[f"ignoring {name} 2D"]["loss total"] != joint[f"{name} 2D"]["loss total"]


def check_gradients(parts: Parts, name: str) -> None:
    joint, by_rank = parts
    largest = max(float(value.abs().max()) for value in joint[name].values())
    for key, value in joint[name].items():
        atol = max(1e-4 * float(value.abs().max()), 1e-5 * largest)
        for results in by_rank:
            torch.testing.assert_close(results[name][key], value, rtol=0, atol=atol)


def test_parts_are_augmented_like_the_joint_batch(parts: Parts, dims: int) -> None:
    """Bit for bit, except for intensities: rounding of matrix products depends on the batch."""
    joint, by_rank = parts
    names = [name for name in joint if name.startswith("batch") and name.endswith(f"{dims}D")]
    for name in names:
        for key, value in joint[name].items():
            concatenated = torch.cat([results[name][key] for results in by_rank])
            if key in ("label", "weak"):
                assert torch.equal(concatenated, value), (name, key)
            else:
                torch.testing.assert_close(concatenated, value, rtol=0, atol=1e-5)


def test_results_are_gathered_in_order(parts: Parts) -> None:
    _, by_rank = parts
    assert [results["gathered"] for results in by_rank] == [[*range(7)]] * 2


def test_trains_and_resumes_with_another_number_of_processes(
    tiny: Planner, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    tiny()
    folder = tmp_path / "run"
    settings = ("train.log_every=1", "train.eval_every=5")
    for steps in (6, 12, 18):
        arguments = train_arguments(tmp_path, *settings, f"train.steps={steps}")
        if steps == 12:
            assert cli(*arguments).exit_code == 0
        else:
            processes = launch_crkd(tmp_path / f"log{steps}", *arguments)
            assert processes.wait() == 0, processes.stderr()
            assert "done: " in processes.output(0)
            assert "2 × " in processes.output(0)
            assert processes.output(1) == ""
        assert load_checkpoint(folder / "last.pth").step == steps
    assert list(logged(folder, "total")) == [*range(1, 19)]
    assert list(logged(folder, "val/dice")) == [5, 6, 10, 12, 15, 18]
    single = tiny("train.steps=1", out="single")
    assert cli(*train_arguments(tmp_path, "train.steps=1", out="single")).exit_code == 0
    assert weights(single.folder).keys() == weights(folder).keys()


@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.parametrize("target", ["torchrun", "rank 1"])
def test_a_signal_to_any_process_saves_and_ends_all(
    tiny: Planner, tmp_path: Path, target: str
) -> None:
    tiny()
    processes = launch_crkd(tmp_path / "log", *train_arguments(tmp_path, *ENDLESS))
    wait_for_steps(tmp_path / "run", 5)
    pid = processes.launcher.pid if target == "torchrun" else processes.pid(1)
    os.kill(pid, signal.SIGTERM)
    assert processes.wait() != 0
    step = load_checkpoint(tmp_path / "run" / "last.pth").step
    assert step >= 5
    assert processes.errors() == [
        f"error: stopped by SIGTERM after step {step}; everything is saved; "
        "rerun the same command to resume"
    ]


@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_with_a_complete_checkpoint(
    tiny: Planner, tmp_path: Path, cli: Callable[..., Any], victim: int
) -> None:
    tiny()
    settings = (*ENDLESS, "train.save_minutes=0")
    processes = launch_crkd(tmp_path / "log", *train_arguments(tmp_path, *settings))
    wait_for_steps(tmp_path / "run", 5)
    os.kill(processes.pid(victim), signal.SIGKILL)
    assert processes.wait() != 0
    last = tmp_path / "run" / "last.pth"
    step = load_checkpoint(last).step
    assert step >= 1
    assert processes.errors() == [
        f"error: another process of this run ended; {last} of step {step} is intact; "
        "rerun the same command to resume"
    ]
    result = cli(*train_arguments(tmp_path, *settings, f"train.steps={step + 2}"))
    assert result.exit_code == 0
    assert f"resuming after step {step}" in result.stderr


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_batch_that_cannot_be_split_is_refused_once(tiny: Planner, tmp_path: Path) -> None:
    tiny()
    arguments = train_arguments(tmp_path, "data.unlabeled_batch_size=3")
    processes = launch_crkd(tmp_path / "log", *arguments)
    assert processes.wait() != 0
    [line] = processes.errors()
    assert "data.unlabeled_batch_size = 3 cannot be split evenly among 2 processes" in line
    assert "exitcode  : 2" in processes.launcher_stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_an_error_of_one_process_is_reported_once_and_ends_all(
    tiny: Planner, tmp_path: Path
) -> None:
    """Process 0 cannot write best.pth; process 1 loses its partner and does not report it."""
    tiny()
    best = tmp_path / "run" / "best.pth"
    best.mkdir(parents=True)
    arguments = train_arguments(tmp_path, "train.steps=100000", "train.eval_every=2")
    processes = launch_crkd(tmp_path / "log", *arguments)
    assert processes.wait() != 0
    [line] = processes.errors()
    assert line.startswith(f"error: cannot write {best}")


def test_evaluate_scores_like_one_process(
    dims: int,
    make_store: Any,
    make_checkpoint: Any,
    tmp_path: Path,
    cli: Callable[..., Any],
    crkd: CommandServer,
) -> None:
    """Three cases for two processes: the same files, byte for byte, and one table."""
    store = make_store(dims=dims)
    frame = Frame(resize=(32, 32)) if dims == 2 else Frame(patch=(16, 16, 16))
    file = make_checkpoint(store.spec, frame, test=("p02", "p00", "p05"))
    options = ("--data-root", tmp_path / "data", "--device", "cpu", "--json", "--out")
    arguments = ["evaluate", file, *options]
    single = cli(*arguments, tmp_path / "single")
    assert single.exit_code == 0
    first, second = run_two(crkd, tmp_path, *arguments, tmp_path / "two")
    assert (first.code, second.code) == (0, 0), (first, second)
    assert json.loads(first.stdout) == json.loads(single.stdout)
    assert second.stdout == second.stderr == ""
    for name in ("cases.csv", "summary.json"):
        expected = (tmp_path / "single" / name).read_bytes()
        assert (tmp_path / "two" / name).read_bytes() == expected


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_users_own_method_trains(
    tiny: Planner, my_method: Path, tmp_path: Path, crkd: CommandServer
) -> None:
    tiny()
    arguments = train_arguments(tmp_path, "train.steps=4", "train.eval_every=2")
    ranks = run_two(crkd, tmp_path, *arguments, "--method", my_method)
    assert [rank.code for rank in ranks] == [0, 0], ranks
    assert (tmp_path / "run" / "my_method.py").read_bytes() == my_method.read_bytes()
    assert load_checkpoint(tmp_path / "run" / "best.pth").user_method is not None
    my_method.write_text("1 / 0")
    ranks = run_two(crkd, tmp_path, *train_arguments(tmp_path), "--method", my_method)
    assert [rank.code for rank in ranks] == [2, 2], ranks
    lines = [line for rank in ranks for line in rank.stderr.splitlines()]
    assert [line for line in lines if line != "loading PyTorch"] == [
        f"error: {my_method} cannot be loaded (ZeroDivisionError: division by zero, line 1); "
        "correct it, --verbose shows more"
    ]


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_predict_shares_the_images_and_gathers_the_failures(
    make_store: Any,
    make_checkpoint: Any,
    tmp_path: Path,
    cli: Callable[..., Any],
    crkd: CommandServer,
    rng: np.random.Generator,
    dims: int,
) -> None:
    file = make_checkpoint(make_store(dims=dims).spec, Frame(resize=(32, 32)))
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in "abcde":
        Image.fromarray(rng.integers(0, 200, (20, 30), dtype=np.uint8)).save(scans / f"{name}.png")
    for name in "bc":  # one for each process
        (scans / f"{name}.png").write_bytes(b"not an image")
    arguments = ["predict", scans, "--checkpoint", file, "--device", "cpu", "--out"]
    single = cli(*arguments, tmp_path / "single")
    assert single.exit_code == 1
    first, second = run_two(crkd, tmp_path, *arguments, tmp_path / "two")
    assert (first.code, second.code) == (1, 1), (first, second)
    _, start, rest = (first.stderr + second.stderr).partition("error: ")
    expected = single.stderr[single.stderr.index("error: ") :].splitlines()
    assert f"{start}{rest}".splitlines()[:3] == expected
    assert "error: " not in rest
    assert "3 masks written" in first.stderr
    masks = [read_files(tmp_path / out) for out in ("single", "two")]
    assert masks[0] == masks[1]
    assert len(masks[0]) == 3


def read_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}
