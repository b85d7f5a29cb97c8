"""The GPU script, on the CPU: what is packed comes back, runs stop, resume and are recorded."""

import argparse
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_speed, gpu_transfer, performance_page
from benchmarks.common import ROOT, read_json, write_json
from benchmarks.inputs import Inputs, Sizes, synthetic
from crkd_cli.config import Frame
from crkd_cli.data.store import ChannelInfo, DatasetSpec, Store, numbered_classes
from crkd_cli.errors import CrkdError
from crkd_cli.runtime.build import load_predictor
from crkd_cli.runtime.checkpoint import load_checkpoint

TINY = Sizes((3, 40, 36), (20, 36, 24), (32, 32), 2, (32, 32, 16), (16, 16, 8), 2)


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return synthetic(tmp_path, TINY)


# What travels


def test_a_packed_store_comes_back_to_within_half_a_gray_level(inputs, tmp_path):
    store = inputs.store("la")
    gpu.pack(store.root, 2, tmp_path / "kit")
    gpu.unpack(tmp_path / "there", tmp_path / "kit")
    restored = Store(tmp_path / "there" / "la")
    assert (restored.spec, restored.cases) == (store.spec, store.cases)
    assert {file.name for file in (restored.root / "splits").iterdir()} == {"2.yaml"}
    for case in store.cases:
        image = store.image(case)
        error = np.abs(restored.image(case) - image).max()
        assert 0 < error <= 0.501 * np.ptp(image) / 255
        assert restored.image(case).dtype == image.dtype
        np.testing.assert_array_equal(restored.label(case), store.label(case))
    with pytest.raises(CrkdError, match="exists already"):  # the exact images stay
        gpu.unpack(inputs.data_root / "prepared", tmp_path / "kit")


def test_a_part_over_the_limit_is_refused(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_transfer, "LIMIT", 1000)
    with pytest.raises(CrkdError, match="give --parts 2"):
        gpu.pack(inputs.store("acdc").root, 1, tmp_path / "kit")


@pytest.fixture
def run(make_checkpoint) -> Path:
    """The folder of a run with a last.pth of about 70 kB."""
    spec = DatasetSpec(
        "toy",
        "folder",
        numbered_classes(("background", "disc")),
        (ChannelInfo("gray", "minmax"),),
        2,
    )
    folder = make_checkpoint(spec, Frame(resize=(32, 32))).parent
    (folder / "log.jsonl").write_text('{"step": 5}\n', encoding="utf-8")
    return folder


def test_weights_come_back_in_parts_and_in_half_precision(run, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_transfer, "FILE_LIMIT", 20_000)
    left_out = gpu.bring_back([run, tmp_path / "never-started"], tmp_path / "out", optimizer=True)
    files = list((tmp_path / "out").iterdir())
    assert not left_out
    assert 5 < len(files) <= gpu_transfer.FILES
    assert all(file.stat().st_size <= 20_000 for file in files)
    gpu.join(tmp_path / "out", tmp_path / "back")
    back = tmp_path / "back" / "toy"
    assert (back / "last.pth").read_bytes() == (run / "last.pth").read_bytes()
    assert (back / "log.jsonl").read_text(encoding="utf-8") == '{"step": 5}\n'

    files = run / "last.pth", back / "weights.pth"
    expected, weights = (load_predictor(load_checkpoint(f), torch.device("cpu")) for f in files)
    rounded = 0
    for name, value in weights.state_dict().items():
        exact = expected.state_dict()[name]
        torch.testing.assert_close(value, exact, rtol=2**-11, atol=2**-24)  # of float16
        rounded += int((value != exact).any())
    assert rounded > 5


def test_what_is_too_much_is_left_out(run, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_transfer, "FILE_LIMIT", 10_000)
    left_out = gpu.bring_back([run], tmp_path / "out", optimizer=True)
    assert list(left_out) == ["toy/last.pth"]
    assert len(list((tmp_path / "out").iterdir())) <= gpu_transfer.FILES


def test_a_damaged_or_missing_part_is_refused(run, tmp_path):
    gpu.bring_back([run], tmp_path)
    part = tmp_path / "toy.weights.pth.1of1"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(CrkdError, match="another SHA-256"):
        gpu.join(tmp_path, tmp_path / "back")
    part.unlink()
    with pytest.raises(CrkdError, match=r"not complete: .*1of1"):
        gpu.join(tmp_path, tmp_path / "back")


# Runs


@pytest.mark.slow
def test_runs_stop_in_time_resume_elsewhere_and_are_recorded(
    inputs, tmp_path, monkeypatch, capsys, cli
):
    for package in ("SimpleITK", "nibabel", "jinja2"):  # which the machine may lack
        (tmp_path / f"{package}.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setattr(gpu, "PACKING", 0)
    monkeypatch.setattr(gpu, "SCORING", 0)
    here, there, out = tmp_path / "here", tmp_path / "there", tmp_path / "out"
    start = "--dataset acdc --labeled 2 --method"
    sets = "--set data.frame={resize:[32,32]} --set model.widths=[4,4,4,4,4]"
    short = f"{start} supervised {sets} --set train.steps=3"
    long = f"{start} crkd {sets} --set train.steps=1000000"
    names = [gpu._name(options) for options in (short, long)]

    def train(runs: list[str], folder: Path, seconds: float, reserve: float):
        monkeypatch.setattr(gpu, "RUNS", folder)
        settings = {"seconds": seconds, "reserve": reserve, "out": out, "keep_optimizer": True}
        gpu.train_runs(argparse.Namespace(names=runs, data_root=inputs.data_root, **settings))
        return json.loads(capsys.readouterr().out)

    first = train([short, long, "--dataset nothing"], here, 75.0, 50.0)
    assert "is not a prepared" in first["dice"].pop("nothing-last-strict")
    assert "is not a prepared" in first["dice"].pop("nothing-last-paper")
    assert set(first["dice"]) == {f"{n}-last-{p}" for n in names for p in gpu.PROTOCOLS}
    following = shlex.split(first["next"])
    assert following[4:] == [long, gpu.PLANNED[0]]
    assert len(list(out.iterdir())) == 5

    gpu.join(out, there)
    steps = []
    for name, dice in first["dice"].items():
        record = read_json(next(there.glob(f"*/{name}.json")))
        assert record["evaluation"]["scores"]["mean"]["dice"][0] == pytest.approx(
            dice / 100, abs=1e-4
        )
        assert record["setting"] == f"acdc 2 32x32 {record['evaluation']['step']}"
        assert record["device"]
        assert record["seconds"] > 0
        steps.append(record["evaluation"]["step"])
    assert steps[:2] == [3, 3]
    assert steps[2] == steps[3] > 0
    result = cli("evaluate", there / names[1] / "weights.pth", "--data-root", inputs.data_root)
    assert result.exit_code == 0
    (summary,) = (there / names[1]).glob("evaluation-*/summary.json")
    dice = first["dice"][f"{names[1]}-last-strict"]
    assert read_json(summary)["mean"]["dice"]["mean"] == pytest.approx(dice / 100, abs=0.01)

    monkeypatch.setattr(gpu, "SCORING", 100)
    second = train([long], there, 40.0, 20.0)
    assert all("no time left" in reason for reason in second["dice"].values())
    log = (there / names[1] / "train.txt").read_text(encoding="utf-8")
    assert f"resuming after step {steps[2]}" in log
    assert load_checkpoint(there / names[1] / "last.pth").step > steps[2]


def test_the_next_runs_are_of_one_dataset_and_have_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "RUNS", tmp_path)
    assert gpu.unfinished(["--dataset a", "--dataset b", "--dataset a", "--dataset a --x"]) == [
        "--dataset a",
        "--dataset a --x",
    ]
    record = {"command": "crkd train --dataset a", "config": {"train": {"steps": 9}}}
    write_json({**record, "evaluation": {"step": 9}}, tmp_path / "a" / "a-last-strict.json")
    assert gpu.unfinished(["--dataset a", "--dataset b"]) == ["--dataset b"]
    write_json({**record, "evaluation": {"step": 8}}, tmp_path / "a" / "a-last-strict.json")
    assert gpu.unfinished(["--dataset a"]) == ["--dataset a"]
    assert gpu.unfinished([]) == []


def test_runs_may_follow_other_arguments(monkeypatch):
    calls = []
    monkeypatch.setattr(gpu, "train_runs", calls.append)
    words = ["gpu", "train", "--seconds", "5", "--dataset acdc", "--dataset la --labeled 4"]
    monkeypatch.setattr("sys.argv", words)
    gpu.main()
    assert (calls[0].names, calls[0].seconds) == (words[-2:], 5.0)


# Measurements


@pytest.mark.slow
def test_every_method_is_checked_beside_the_cpu(tmp_path, monkeypatch):
    gpu.check(tmp_path, 600.0, ["supervised", "crkd"], steps=1)
    (file,) = tmp_path.glob("check-*.json")
    rows = read_json(file)["rows"]
    assert [row["data"] for row in rows] == ["acdc", "acdc", "la", "la"]
    with pytest.raises(CrkdError, match="0 of 2 were checked"):
        gpu.check(tmp_path, 0.0, ["crkd"])
    monkeypatch.setattr(gpu, "_losses", lambda *args: [1.0, math.nan])
    with pytest.raises(CrkdError, match="not finite"):
        gpu.check(tmp_path, 600.0, ["crkd"])


@pytest.mark.slow
def test_training_steps_are_timed_and_profiled_for_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_speed, "PROFILED", 2)
    monkeypatch.setattr(gpu_speed, "REPEATS", 1)
    monkeypatch.setattr(gpu_speed, "COPIED", 1000)
    rows = list(gpu_speed.training_steps(synthetic(tmp_path, TINY), math.inf, steps=1))
    methods = [row["work"].split()[0] for row in rows]
    assert list(dict.fromkeys(methods)) == ["crkd", "unimatch"]
    for row in rows:
        assert ("baseline_s" in row) == row["work"].startswith("crkd")
        assert row.get("value", row.get("crkd_s")) > 0
    facts = {"machine": "", "command": "", "commit": "", "date": "", "device": "", "note": ""}
    page = performance_page.speed_table({**facts, "versions": {}, "file": "", "rows": rows})
    assert all(row["note"] in page for row in rows)


def test_overlapping_work_counts_once():
    """0 to 3 and 2 to 4 overlap, 2.5 to 3 is inside, 10 to 11 is apart."""
    assert gpu_speed.covered([(10, 11), (0, 3), (2, 4), (2.5, 3)]) == 5
    assert gpu_speed.covered([]) == 0


def test_kernels_are_listed_by_their_time(monkeypatch):
    monkeypatch.setattr(gpu_speed, "PROFILED", 2)
    monkeypatch.setattr(gpu_speed, "KERNELS", 2)
    spans = [(0.0, 10.0, "add"), (10.0, 3010.0, "conv"), (5.0, 6.0, "mul"), (20.0, 40.0, "add")]
    assert gpu_speed.list_kernels(spans) == [
        {"name": "conv", "calls": 0.5, "ms": 1.5},
        {"name": "add", "calls": 1.0, "ms": 0.015},
    ]


def test_traffic_is_what_operations_read_and_write():
    """Views are free, an expanded axis is read once, and picking reads what it returns."""
    x, y, scalar, two = torch.ones(100, 4), torch.ones(100, 4), torch.ones(()), torch.arange(2)

    def bytes_of(work: Callable[[], object]) -> int:
        with gpu_speed.Traffic() as traffic:
            work()
        return traffic.bytes

    assert bytes_of(lambda: x.T[:2].view(2, 100)) == 0
    assert bytes_of(lambda: x + y) == 3 * 1600
    assert bytes_of(lambda: x * scalar.expand(100, 4)) == 2 * 1600 + 4
    assert bytes_of(lambda: x.mul_(y)) == 3 * 1600
    assert bytes_of(lambda: x.copy_(y)) == 2 * 1600
    assert bytes_of(lambda: x.index_select(0, two)) == 32 + 16 + 32
