"""The GPU script, on the CPU: what is packed comes back, runs resume, records are complete."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.inputs import Inputs, Sizes, synthetic
from crkd_cli.errors import CrkdError
from crkd_cli.methods import METHODS

TINY = Sizes((3, 40, 36), (20, 36, 24), (32, 32), 2, (16, 16, 16), (8, 8, 8), 1)


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return synthetic(tmp_path, TINY)


def test_a_packed_store_comes_back_to_within_half_a_gray_level(inputs, tmp_path):
    store = inputs.store("la")
    gpu.pack(store.root, 2, tmp_path / "kit")
    gpu.unpack(tmp_path / "there", tmp_path / "kit")
    restored = gpu.Store(tmp_path / "there" / "la")
    assert restored.index == store.index
    assert {file.name for file in (restored.root / "splits").iterdir()} == {"2.yaml"}
    for case in store.cases:
        image = store.image(case)
        error = np.abs(restored.image(case) - image).max()
        assert 0 < error <= 0.501 * np.ptp(image) / 255
        assert restored.image(case).dtype == image.dtype
        np.testing.assert_array_equal(restored.label(case), store.label(case))


def test_a_part_over_the_limit_is_refused(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LIMIT", 1000)
    with pytest.raises(CrkdError, match="give --parts 2"):
        gpu.pack(inputs.store("acdc").root, 1, tmp_path / "kit")


@pytest.mark.slow
def test_runs_stop_in_time_resume_and_are_recorded(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "KIT", tmp_path / "kit")
    sets = "--set data.frame={resize:[32,32]} --set model.widths=[4,4,4,4,4]"
    options = f"--dataset acdc --labeled 2 --method supervised {sets} --set train.steps=3"
    gpu.train_runs([options], 0.0, inputs.data_root, tmp_path / "out")
    first = json.loads(capsys.readouterr().out)["dice"]
    assert not any(isinstance(value, float) for value in first.values())
    gpu.train_runs([options, "--dataset nothing"], 60.0, inputs.data_root, tmp_path / "out")
    dice = json.loads(capsys.readouterr().out)["dice"]
    assert len(dice) == 4
    for file in (tmp_path / "out").glob("*.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        assert record["command"] == f"crkd train {options}"
        assert record["setting"] == "acdc 2 32x32 3"
        assert record["evaluation"]["step"] == 3
        mean = 100 * record["evaluation"]["scores"]["mean"]["dice"][0]
        assert dice.pop(file.stem) == pytest.approx(mean, abs=0.01)
    assert all("is not a prepared" in message for message in dice.values())  # of the second run
    assert len(dice) == 2


@pytest.mark.slow
def test_every_method_is_checked_beside_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(METHODS, "names", lambda: ["supervised", "crkd"])
    assert gpu.check(tmp_path, steps=1)
    (file,) = tmp_path.glob("check-*.json")
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert [row["data"] for row in rows] == ["acdc", "acdc", "la", "la"]
    monkeypatch.setattr(gpu, "_losses", lambda *args: [1.0, math.nan])
    assert not gpu.check(tmp_path)


def test_runs_may_follow_other_arguments(monkeypatch):
    calls = []
    monkeypatch.setattr(gpu, "train_runs", lambda *args: calls.append(args))
    words = ["gpu", "train", "--seconds", "5", "--dataset acdc", "--dataset la --labeled 4"]
    monkeypatch.setattr("sys.argv", words)
    gpu.main()
    assert calls[0][:2] == (words[-2:], 5.0)
