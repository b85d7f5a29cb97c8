"""Checkpoints: reading them back, refusing other files, old formats, and writes that fail."""

import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from crkd_cli.errors import CrkdError
from crkd_cli.runtime.build import load_predictor
from crkd_cli.runtime.checkpoint import FORMAT, load_checkpoint, save_checkpoint
from crkd_cli.runtime.run_folder import newest_checkpoint
from tests.training.helpers import CPU, Planner, assert_equal, train_plan, weights


@pytest.fixture
def trained(tiny: Planner) -> Path:
    planned = tiny("train.steps=2")
    train_plan(planned)
    return planned.folder / "last.pth"


def test_round_trip(trained: Path) -> None:
    original = load_checkpoint(trained)
    copy = trained.with_name("copy.pth")
    save_checkpoint(original, copy)
    loaded = load_checkpoint(copy)
    for name in ("step", "config", "spec", "split", "best"):
        assert getattr(loaded, name) == getattr(original, name)
    assert_equal(loaded.weights, original.weights)
    side = [16] * original.config.data.frame.dims
    x = torch.rand(1, 1, *side)
    logits = load_predictor(loaded, CPU)(x)
    assert logits.shape == (1, 2, *side)
    assert torch.equal(logits, load_predictor(original, CPU)(x))


def test_a_run_folder_loads_as_its_result(trained: Path) -> None:
    best = trained.with_name("best.pth")
    assert load_checkpoint(trained.parent).path == best
    best.unlink()
    assert load_checkpoint(trained.parent).path == trained
    message = r"there is no checkpoint .*best\.pth; there is .*last\.pth"
    with pytest.raises(CrkdError, match=message):
        load_checkpoint(best)


@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)], indirect=True)
def test_no_state_of_a_random_generator_is_needed(tiny: Planner) -> None:
    """Every global generator is reseeded before every step, and the weights stay the same."""

    def reseed(step: int, values: dict[str, float]) -> None:
        random.seed(step + 7)
        np.random.seed(step + 7)  # noqa: NPY002
        torch.manual_seed(step + 7)

    undisturbed, disturbed = (tiny("train.steps=8", out=out) for out in ("plain", "reseeded"))
    train_plan(undisturbed)
    train_plan(disturbed, reseed)
    assert_equal(weights(disturbed.folder), weights(undisturbed.folder))


def test_a_checkpoint_of_an_earlier_version_is_refused(trained: Path, tmp_path: Path) -> None:
    content = torch.load(trained, weights_only=True)
    content["format"] = "crkd checkpoint 5"
    file = tmp_path / "old.pth"
    torch.save(content, file)
    with pytest.raises(CrkdError, match=r"earlier version of crkd.* train again"):
        load_checkpoint(file)


class Evil:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("import pathlib; pathlib.Path('run-by-pickle').touch()",))


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "truncated",
        "text",
        "pickle",
        "torch pickle",
        "other tensors",
        "other format",
        "folder",
    ],
)
def test_anything_else_is_refused(
    trained: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "foreign.pth"
    write_foreign(file, kind, trained.read_bytes())
    with pytest.raises(CrkdError) as error:
        load_checkpoint(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run-by-pickle").exists()


def write_foreign(file: Path, kind: str, checkpoint: bytes) -> None:
    tensors = {
        "torch pickle": {"format": FORMAT, "step": Evil()},
        "other tensors": {"weight": torch.zeros(3)},
        "other format": {"format": "another format"},
    }
    texts = {
        "empty": b"",
        "truncated": checkpoint[: len(checkpoint) // 2],
        "text": b"<html>",
        "pickle": pickle.dumps(Evil()),
    }
    if kind == "folder":
        file.mkdir()
    elif kind in tensors:
        torch.save(tensors[kind], file)
    else:
        file.write_bytes(texts[kind])


def test_weights_of_another_network_are_refused(trained: Path) -> None:
    checkpoint = load_checkpoint(trained)
    checkpoint.weights.popitem()
    with pytest.raises(CrkdError, match="does not fit its own configuration"):
        load_predictor(checkpoint, CPU)


def test_a_write_that_fails_leaves_the_old_file(trained: Path) -> None:
    checkpoint = load_checkpoint(trained)
    before = trained.read_bytes()
    checkpoint.weights["more"] = lambda: None  # type: ignore[assignment]  # cannot be pickled
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(checkpoint, trained)
    assert trained.read_bytes() == before
    assert sorted(trained.parent.glob(".tmp-*")) == []


def test_newest(tmp_path: Path) -> None:
    with pytest.raises(CrkdError, match="no checkpoint under"):
        newest_checkpoint(tmp_path)
    for age, name in enumerate(["a/last.pth", "b/best.pth", "b/last.pth", "c/last.pth"]):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
        os.utime(file, (1000 - age, 1000 - age))
    assert newest_checkpoint(tmp_path) == tmp_path / "a/last.pth"
    (tmp_path / "b/last.pth").touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "b/best.pth"
