"""Several processes: the gradients of one process with the joint batch, one writer, and ends that leave a checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from crkd_cli.config import Frame
from crkd_cli.methods import METHODS
from crkd_cli.runtime import checkpoint as checkpoints
from crkd_cli.training.plan import Plan

CHECKOUT = Path(__file__).parents[2]
Planner = Callable[..., Plan]


class Ranks:
    """`python -m torch.distributed.run` with two processes, whose output goes to files."""

    def __init__(self, folder: Path, *args: object) -> None:
        self.folder = folder
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            "--redirects=3",
        ]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*launch, f"--log-dir={folder}", *map(str, args)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> int:
        """The exit code, once all have ended."""
        _, self.launcher = self.process.communicate(timeout=120)
        return self.process.returncode

    def said(self, rank: int, stream: str = "stderr") -> str:
        [file] = self.folder.rglob(f"{rank}/{stream}.log")
        return file.read_text()

    def errors(self) -> list[str]:
        """The lines that begin with error:, of both processes; no process may show a traceback."""
        said = self.said(0) + self.said(1)
        assert "Traceback" not in said, said
        return [line for line in said.splitlines() if line.startswith("error: ")]

    def pid(self, rank: int) -> int:
        children = (
            Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        )
        of = {int(pid): Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in children}
        [pid] = [pid for pid, environment in of.items() if f"RANK={rank}".encode() in environment]
        return pid


def crkd(folder: Path, *args: object) -> Ranks:
    return Ranks(folder, "-m", "crkd_cli", *args)


def training(root: Path, *sets: str, out: str = "run") -> list[object]:
    """The arguments of `crkd train` for the plan that `tiny` laid out in `root`."""
    files = [
        "--config",
        root / "config.yaml",
        "--split",
        root / "split.yaml",
        "--out",
        root / out,
        "--data-root",
        root / "data",
    ]
    return ["train", "--dataset", "toy", *files, *(part for one in sets for part in ("--set", one))]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What tests/training/ranks.py makes of the joint batch, and what its two processes make of their parts."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("ranks.py")
    ranks = Ranks(folder, script, folder)
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    subprocess.run([sys.executable, script, folder], check=True, env=environment)
    assert ranks.end() == 0, ranks.said(0) + ranks.said(1)
    return torch.load(folder / "1-0.pt"), [torch.load(folder / f"2-{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("what", [*METHODS.names(), "semantic"])
def test_gradients_are_those_of_the_joint_batch(parts: Any, dims: int, what: str) -> None:
    """Every parameter's and every loss, to fp32's rounding, in either process.

    Before a batch norm a bias has no gradient but rounding, which is of the size of what cancels: hence the second bound.
    """
    joint, own = parts
    names = [name for name in joint if name.startswith(f"{what} {dims}D")]
    assert len(names) == (4 if what == "semantic" else 1)
    for name in names:
        largest = max(float(value.abs().max()) for value in joint[name].values())
        for key, value in joint[name].items():
            atol = max(1e-4 * float(value.abs().max()), 1e-5 * largest)
            for one in own:
                torch.testing.assert_close(one[name][key], value, rtol=0, atol=atol)
    if what == "crkd":
        assert 0.1 < joint[names[0]]["loss kept"] < 0.999


def test_parts_of_a_batch_are_augmented_as_the_joint_batch_is(parts: Any, dims: int) -> None:
    """Bit for bit; but for the colors of RGB, whose matrix products round by the batch's size."""
    joint, own = parts
    for name in (name for name in joint if name.startswith("batch") and name.endswith(f"{dims}D")):
        for key, value in joint[name].items():
            together = torch.cat([one[name][key] for one in own])
            if "rgb" in name and key == "strong":
                torch.testing.assert_close(together, value, rtol=0, atol=1e-6)
            else:
                assert torch.equal(together, value), (name, key)


def test_shares_come_back_in_order(parts: Any) -> None:
    assert [one["collected"] for one in parts[1]] == [[*range(7)]] * 2


@pytest.mark.slow
def test_trains_to_the_end_and_goes_on_with_another_number_of_processes(
    tiny: Planner, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    tiny()
    always = ("train.log_every=1", "train.eval_every=5")
    for steps in (6, 12, 18):
        arguments = training(tmp_path, *always, f"train.steps={steps}")
        if steps == 12:
            assert cli(*arguments).exit_code == 0
        else:
            ranks = crkd(tmp_path / f"log{steps}", *arguments)
            assert ranks.end() == 0, ranks.said(0) + ranks.said(1)
            assert "done: " in ranks.said(0)
            assert "2 × " in ranks.said(0)
            assert ranks.said(1) == ""
        assert checkpoints.load_checkpoint(tmp_path / "run" / "last.pth").step == steps
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "total" in line] == [*range(1, 19)]
    assert [line["step"] for line in lines if "val/dice" in line] == [5, 6, 10, 12, 15, 18]
    one = tiny("train.steps=1", out="one")
    assert cli(*training(tmp_path, "train.steps=1", out="one")).exit_code == 0
    assert (
        checkpoints.load_checkpoint(one.folder / "last.pth").weights.keys()
        == checkpoints.load_checkpoint(tmp_path / "run/last.pth").weights.keys()
    )


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.parametrize("target", ["torchrun", "rank 1"])
def test_a_signal_to_any_process_saves_and_ends_all(
    tiny: Planner, tmp_path: Path, target: str
) -> None:
    tiny()
    ranks = crkd(
        tmp_path / "log",
        *training(tmp_path, "train.steps=100000", "train.log_every=1", "train.eval_every=100000"),
    )
    wait_for_steps(tmp_path / "run", 5)
    os.kill(ranks.process.pid if target == "torchrun" else ranks.pid(1), signal.SIGTERM)
    assert ranks.end() != 0
    step = checkpoints.load_checkpoint(tmp_path / "run" / "last.pth").step
    assert step >= 5
    assert ranks.errors() == [
        f"error: stopped by SIGTERM after step {step}; everything is saved; rerun the same command to resume"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_with_a_whole_checkpoint(
    tiny: Planner, tmp_path: Path, cli: Callable[..., Any], victim: int
) -> None:
    tiny()
    often = ("train.log_every=1", "train.eval_every=100000", "train.save_minutes=0")
    ranks = crkd(tmp_path / "log", *training(tmp_path, "train.steps=100000", *often))
    wait_for_steps(tmp_path / "run", 5)
    os.kill(ranks.pid(victim), signal.SIGKILL)
    assert ranks.end() != 0
    last = tmp_path / "run" / "last.pth"
    step = checkpoints.load_checkpoint(last).step
    assert step >= 1
    [line] = ranks.errors()
    assert (
        line
        == f"error: another process of this run ended; {last} of step {step} is intact; rerun the same command to resume"
    )
    result = cli(*training(tmp_path, f"train.steps={step + 2}", *often))
    assert result.exit_code == 0
    assert f"resuming after step {step}" in result.stderr


def wait_for_steps(folder: Path, count: int) -> None:
    file = folder / "log.jsonl"
    deadline = time.monotonic() + 60
    while not file.is_file() or len(file.read_text().splitlines()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_batch_that_cannot_be_split_is_refused_once(tiny: Planner, tmp_path: Path) -> None:
    tiny()
    ranks = crkd(tmp_path / "log", *training(tmp_path, "data.unlabeled_batch_size=3"))
    assert ranks.end() != 0
    [line] = ranks.errors()
    assert "data.unlabeled_batch_size = 3 cannot be split evenly among 2 processes" in line
    assert "exitcode  : 2" in ranks.launcher
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2], indirect=True)
def test_an_error_of_one_process_is_told_once_and_ends_all(tiny: Planner, tmp_path: Path) -> None:
    """Process 0 cannot write best.pth; process 1 loses its partner and says nothing of it."""
    tiny()
    (tmp_path / "run" / "best.pth").mkdir(parents=True)
    ranks = crkd(tmp_path / "log", *training(tmp_path, "train.steps=100000", "train.eval_every=2"))
    assert ranks.end() != 0
    [line] = ranks.errors()
    assert line.startswith(f"error: cannot write {tmp_path / 'run' / 'best.pth'}")


@pytest.mark.slow
def test_evaluate_scores_as_one_process_does(
    dims: int, make_store: Any, make_checkpoint: Any, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """Three cases for two processes: the same files, byte for byte, and one table."""
    store = make_store(dims=dims)
    frame = Frame(resize=(32, 32)) if dims == 2 else Frame(patch=(16, 16, 16))
    file = make_checkpoint(store.spec, frame, test=("p02", "p00", "p05"))
    arguments = [
        "evaluate",
        file,
        "--data-root",
        tmp_path / "data",
        "--device",
        "cpu",
        "--json",
        "--out",
    ]
    one = cli(*arguments, tmp_path / "one")
    assert one.exit_code == 0
    ranks = crkd(tmp_path / "log", *arguments, tmp_path / "two")
    assert ranks.end() == 0
    assert json.loads(ranks.said(0, "stdout")) == json.loads(one.stdout)
    assert ranks.said(1, "stdout") == ranks.said(1) == ""
    for name in ("cases.csv", "summary.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_users_own_method_trains(tiny: Planner, my_method: Path, tmp_path: Path) -> None:
    tiny()
    ranks = crkd(
        tmp_path / "log",
        *training(tmp_path, "train.steps=4", "train.eval_every=2"),
        "--method",
        my_method,
    )
    assert ranks.end() == 0, ranks.said(0) + ranks.said(1)
    assert (tmp_path / "run" / "my_method.py").read_bytes() == my_method.read_bytes()
    assert checkpoints.load_checkpoint(tmp_path / "run" / "best.pth").user_method is not None
    my_method.write_text("1 / 0")
    ranks = crkd(tmp_path / "more", *training(tmp_path), "--method", my_method)
    assert ranks.end() == 1
    assert ranks.errors() == [
        f"error: {my_method} cannot be loaded (ZeroDivisionError: division by zero, line 1); "
        "correct it, --verbose shows more"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2], indirect=True)
def test_predict_shares_the_images_and_joins_the_failures(
    make_store: Any,
    make_checkpoint: Any,
    tmp_path: Path,
    cli: Callable[..., Any],
    rng: np.random.Generator,
    dims: int,
) -> None:
    file = make_checkpoint(make_store(dims=dims).spec, Frame(resize=(32, 32)))
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in "abcde":
        Image.fromarray(rng.integers(0, 200, (20, 30), dtype=np.uint8)).save(scans / f"{name}.png")
    for name in "bc":  # one for each process
        (scans / f"{name}.png").write_bytes(b"no image")
    arguments = ["predict", scans, "--checkpoint", file, "--device", "cpu", "--out"]
    one = cli(*arguments, tmp_path / "one")
    assert one.exit_code == 1
    ranks = crkd(tmp_path / "log", *arguments, tmp_path / "two")
    assert ranks.end() == 1
    said = ranks.said(0) + ranks.said(1)
    assert (
        said[said.index("error: 2 images failed") :].splitlines()[:3]
        == one.stderr[one.stderr.index("error: ") :].splitlines()
    )
    assert ranks.errors() == ["error: 2 images failed:"]
    assert "3 masks written" in ranks.said(0)
    masks = [
        {mask.name: mask.read_bytes() for mask in (tmp_path / out).iterdir()}
        for out in ("one", "two")
    ]
    assert masks[0] == masks[1]
    assert len(masks[0]) == 3
