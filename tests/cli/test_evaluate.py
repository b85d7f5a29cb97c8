"""`crkd evaluate` on the command line."""

import importlib
import json
import os
import pickle
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import torch

from crkd_cli.config import Frame
from crkd_cli.data.store import ClassInfo, write_index

FRAME = Frame(resize=(32, 32))


@pytest.fixture
def ready(make_store, make_checkpoint, tmp_path):
    """Checkpoint and data root of a store with three test cases."""
    store = make_store(groups=6)
    return make_checkpoint(
        store.spec, FRAME, val=("p04",), test=("p00", "p01", "p02")
    ), tmp_path / "data"


def test_table_and_files(cli, ready):
    file, root = ready
    result = cli("evaluate", file, "--data-root", root)
    assert result.exit_code == 0, result.stderr
    assert "strict protocol" in result.stdout
    assert "Dice %" in result.stdout
    assert "HD95 mm" in result.stdout
    assert "bootstrap over cases]" in " ".join(result.stdout.split())
    # One case has no interval.
    assert "bootstrap" not in cli("evaluate", file, "--data-root", root, "--part", "val").stdout
    assert (file.parent / "evaluation-strict-test" / "cases.csv").is_file()


def test_json_is_the_summary(cli, ready, tmp_path):
    file, root = ready
    result = cli(
        "evaluate", file, "--data-root", root, "--json", "--out", tmp_path / "here", "--part", "val"
    )
    assert result.exit_code == 0, result.stderr
    tree = json.loads(result.stdout)
    assert tree == json.loads((tmp_path / "here" / "summary.json").read_text())
    assert tree["part"] == "val"
    assert set(tree["mean"]["dice"]) == {"mean", "sd", "low", "high", "n", "undefined"}


@pytest.fixture
def with_absent_classes(make_store, make_checkpoint, tmp_path):
    """The checkpoint and data root of four cases: two with a tumor, none with a cyst."""
    store = make_store(groups=4)
    for case in ("p00", "p01"):
        np.save(store.root / "labels" / f"{case}.npy", np.zeros((32, 32), np.uint8))
    classes = (
        ClassInfo("background", (0,)),
        ClassInfo("tumor", (5,)),
        ClassInfo("cyst", (2,)),
    )
    spec = msgspec.structs.replace(store.spec, classes=classes)
    index = msgspec.structs.replace(store.index, spec=spec)
    write_index(store.root, index)
    return make_checkpoint(spec, FRAME, test=tuple(store.cases)), tmp_path / "data"


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_absent_classes_have_columns_of_their_own(cli, with_absent_classes):
    """The network predicts both classes in every image. The value is shown where it is no index."""
    file, root = with_absent_classes
    result = cli("evaluate", file, "--data-root", root)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    heading = [cell.strip() for cell in lines[1].split("┃")]
    assert heading[:4] == ["class", "n", "FP/absent", "Dice %"]
    tumor, cyst, mean = (
        cells_of(next(line for line in lines if line.strip().startswith(name)))
        for name in ("tumor (5)", "cyst ", "mean ")
    )
    assert tumor[1:3] == ["4", "2/2"]
    assert cyst == ["cyst", "0", "4/4", *["–"] * 6]
    assert mean[1:4] == ["4", "6/6", tumor[3]]
    assert "n: cases with a score; FP/absent: cases without the class in which it is predicted" in (
        " ".join(result.stdout.split())
    )
    assert "nan" not in result.stdout


def test_a_narrow_terminal_shows_dice_and_a_distance(cli, with_absent_classes, monkeypatch):
    file, root = with_absent_classes
    module = importlib.import_module("crkd_cli.cli.evaluate")
    monkeypatch.setattr(module, "narrow", lambda columns: columns > 80)
    result = cli("evaluate", file, "--data-root", root)
    lines = result.stdout.splitlines()
    assert [cell.strip() for cell in lines[1].split("┃")][3:] == ["Dice %", "HD95 mm"]
    assert max(map(len, map(str.rstrip, lines))) <= 80
    assert "the other scores are in summary.json" in result.stdout


def test_quiet_prints_nothing(cli, ready):
    file, root = ready
    result = cli("evaluate", file, "--data-root", root, "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_piped_output_is_plain(ready):
    file, root = ready
    environment = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")
    }
    command = [sys.executable, "-m", "crkd_cli", "evaluate", str(file), "--data-root", str(root)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "\x1b" not in result.stdout + result.stderr
    assert "…" not in result.stdout  # nothing cut off
    assert "evaluating 3/3 cases" in result.stderr


def test_published_rows_are_printed(cli, make_store, make_checkpoint, tmp_path):
    store = make_store("la", dims=3, groups=5)
    file = make_checkpoint(
        store.spec, Frame(patch=(16, 16, 16)), labeled=("p00", "p01", "p02", "p03"), test=("p04",)
    )
    result = cli("evaluate", file, "--data-root", tmp_path / "data")
    assert result.exit_code == 0, result.stderr
    line = next(
        line for line in result.stdout.splitlines() if "CRKD README" in line and "87.21" in line
    )
    assert [cell.strip() for cell in line.strip("│ ").split("│")] == [
        "CRKD",
        "paper",
        "CRKD README",
        "87.21",
        "77.50",
        "9.02",
        "2.04",
    ]
    assert "published for la with 4 labeled" in result.stdout


def test_bad_checkpoints(cli, ready, tmp_path):
    file, root = ready
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    torch.save({"format": "crkd checkpoint 7", "weights": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "cut.pth").write_bytes(file.read_bytes()[:3000])
    (tmp_path / "empty.pth").touch()
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, tmp_path / "foreign.pth")
    for name in ("bomb", "plain", "cut", "empty", "foreign", "missing"):
        for command in (["evaluate"], ["predict", root, "--checkpoint"]):
            (root / "x.png").touch()
            result = cli(
                *command,
                tmp_path / f"{name}.pth",
                *(["--data-root", root] if len(command) == 1 else []),
            )
            assert result.exit_code == 1, (name, result.output)
            *_, last = result.stderr.strip().splitlines()
            assert last.startswith("error: ")
            assert f"{name}.pth" in last
            assert "give a best.pth or last.pth" in last
    assert not marker.exists()


def test_store_is_missing_or_of_another_recipe(cli, ready, tmp_path):
    file, root = ready
    result = cli("evaluate", file, "--data-root", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "run: crkd prepare-data toy" in result.stderr
    index = root / "prepared" / "toy" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "recipe": 999}))
    result = cli("evaluate", file, "--data-root", root)
    assert result.exit_code == 1
    assert "recipe 999" in result.stderr
    assert not (file.parent / "evaluation-strict-test").exists()


def test_output_that_cannot_be_written(cli, ready, tmp_path):
    file, root = ready
    (tmp_path / "a file").touch()
    result = cli("evaluate", file, "--data-root", root, "--out", tmp_path / "a file" / "here")
    assert result.exit_code == 1
    assert "cannot write to" in result.stderr
    assert "--out" in result.stderr


def test_wrong_usage(cli, ready):
    file, root = ready
    assert cli("evaluate", file, "--data-root", root, "--protocol", "fair").exit_code == 2
    result = cli("evaluate", file, "--data-root", root, "--device", "cudaa")
    assert result.exit_code == 2
    assert "use auto, cpu, cuda or cuda:N" in result.stderr
    result = cli("evaluate", file, "--data-root", root, "--protocol", "paper")
    assert result.exit_code == 2
    assert "no published protocol for folder data" in result.stderr
    result = cli("evaluate", file, "--data-root", root, "--protocol", "paper", "--tta")
    assert result.exit_code == 2
    assert "the published protocol has no test-time mirroring; drop --tta" in result.stderr


@pytest.mark.slow
def test_scores_with_mirroring_are_kept_apart(cli, ready):
    """They do not replace the others, and `crkd compare` shows them as different."""
    file, root = ready
    names = {"evaluation-strict-test": [], "evaluation-strict-test-tta": ["--tta"]}
    for options in names.values():
        result = cli("evaluate", file, "--data-root", root, *options)
        assert result.exit_code == 0, result.stderr
        assert ("test-time mirroring" in result.stdout) == bool(options)
    folders = [file.parent / name for name in names]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert [summary["tta"] for summary in summaries] == [False, True]
    assert summaries[0]["mean"]["dice"] != summaries[1]["mean"]["dice"]
    result = cli("compare", *folders)
    text = " ".join(result.stdout.split())
    assert "supervised − supervised with tta" in text
    assert "test-time mirroring is not used (supervised), used (supervised with tta)" in text
