"""Checkpoints: what is read back, what is refused, and that a write which fails leaves the old file."""

import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from crkd_cli.errors import CrkdError
from crkd_cli.runtime import checkpoint as checkpoints
from crkd_cli.runtime import run_folder
from crkd_cli.runtime.build import load_predictor
from crkd_cli.training.loop import train
from crkd_cli.training.plan import Plan
from crkd_cli.training.start import start

Planner = Callable[..., Plan]


@pytest.fixture
def trained(tiny: Planner) -> Path:
    planned = tiny("train.steps=2")
    train(start(planned), lambda step, values: None)
    return planned.folder / "last.pth"


def test_round_trip(trained: Path) -> None:
    one = checkpoints.load_checkpoint(trained)
    best = trained.with_name("best.pth")
    assert checkpoints.load_checkpoint(trained.parent).path == best  # of the run folder
    best.unlink()
    assert checkpoints.load_checkpoint(trained.parent).path == trained
    with pytest.raises(
        CrkdError, match=r"there is no checkpoint .*best\.pth; there is .*last\.pth"
    ):
        checkpoints.load_checkpoint(best)
    copy = trained.with_name("copy.pth")
    checkpoints.save_checkpoint(one, copy)
    two = checkpoints.load_checkpoint(copy)
    assert (one.step, one.config, one.spec, one.split, one.best) == (
        two.step,
        two.config,
        two.spec,
        two.split,
        two.best,
    )
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    dims = one.config.data.frame.dims
    x = torch.rand(1, 1, *[16] * dims)
    model = load_predictor(one, torch.device("cpu"))
    assert model(x).shape == (1, 2, *[16] * dims)
    assert torch.equal(model(x), load_predictor(two, torch.device("cpu"))(x))


def test_no_state_of_a_random_generator_is_needed(tiny: Planner) -> None:
    """Other states of every global generator before every step, the same weights."""

    def disturb(step: int, values: dict[str, float]) -> None:
        random.seed(step + 7)
        np.random.seed(step + 7)  # noqa: NPY002
        torch.manual_seed(step + 7)

    calm, disturbed = (tiny("train.steps=8", out=out) for out in ("calm", "disturbed"))
    train(start(calm), lambda step, values: None)
    train(start(disturbed), disturb)
    one, two = (
        checkpoints.load_checkpoint(planned.folder / "last.pth").weights
        for planned in (calm, disturbed)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


class Evil:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("import pathlib; pathlib.Path('run-by-pickle').touch()",))


@pytest.mark.parametrize(
    "kind", ["empty", "truncated", "text", "pickle", "torch pickle", "other tensors", "folder"]
)
def test_anything_else_is_refused(
    trained: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "foreign.pth"
    content = trained.read_bytes()
    if kind == "torch pickle":
        torch.save({"format": checkpoints.FORMAT, "step": Evil()}, file)
    elif kind == "other tensors":
        torch.save({"weight": torch.zeros(3)}, file)
    elif kind == "folder":
        file.mkdir()
    else:
        made = {
            "empty": b"",
            "truncated": content[: len(content) // 2],
            "text": b"<html>",
            "pickle": pickle.dumps(Evil()),
        }
        file.write_bytes(made[kind])
    with pytest.raises(CrkdError) as error:
        checkpoints.load_checkpoint(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run-by-pickle").exists()


def test_weights_of_another_network_are_refused(trained: Path) -> None:
    one = checkpoints.load_checkpoint(trained)
    one.weights.popitem()
    with pytest.raises(CrkdError, match="does not fit its own configuration"):
        load_predictor(one, torch.device("cpu"))


def test_a_write_that_fails_leaves_the_old_file(trained: Path) -> None:
    one = checkpoints.load_checkpoint(trained)
    before = trained.read_bytes()
    one.weights["more"] = lambda: None  # type: ignore[assignment]    # cannot be pickled
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpoints.save_checkpoint(one, trained)
    assert trained.read_bytes() == before
    assert sorted(trained.parent.glob(".tmp-*")) == []


def test_newest(tmp_path: Path) -> None:
    with pytest.raises(CrkdError, match="no checkpoint under"):
        run_folder.newest_checkpoint(tmp_path)
    for age, name in enumerate(["a/last.pth", "b/best.pth", "b/last.pth", "c/last.pth"]):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
        import os

        os.utime(file, (1000 - age, 1000 - age))
    assert run_folder.newest_checkpoint(tmp_path) == tmp_path / "a/last.pth"
    (tmp_path / "b/last.pth").touch()
    assert run_folder.newest_checkpoint(tmp_path) == tmp_path / "b/best.pth"
