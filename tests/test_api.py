"""The Python functions do what the commands do."""

import json
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import crkd_cli as crkd
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError
from crkd_cli.runtime.checkpoint import load_checkpoint
from tests.training.helpers import assert_equal, read_lines, train_arguments, weights

NOTEBOOK = Path(__file__).parents[1] / "docs" / "examples" / "phantom.ipynb"


def test_nothing_heavy_is_loaded_with_the_package():
    code = "import crkd_cli, sys; print({'torch', 'numpy'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("set()\n", "")


def test_every_name_exists_and_no_other():
    assert all(hasattr(crkd, name) for name in crkd.__all__)
    with pytest.raises(AttributeError, match="module 'crkd_cli' has no attribute 'fit'"):
        attrgetter("fit")(crkd)


@pytest.mark.slow
def test_from_files_to_masks(tmp_path, rng):
    source, root = tmp_path / "cells", tmp_path / "data"
    for part in ("images", "labels"):
        (source / part).mkdir(parents=True)
    for number in range(10):
        label = np.zeros((40, 40), np.uint8)
        label[10:25, 5 + number : 20 + number] = 1
        image = (60 + 120 * label + rng.integers(0, 20, label.shape)).astype(np.uint8)
        Image.fromarray(image).save(source / "images" / f"{number}.png")
        Image.fromarray(label).save(source / "labels" / f"{number}.png")
    lines: list[str] = []
    store = crkd.prepare("cells", source, data_root=root, notify=lines.append)
    assert len(store.cases) == 10
    split = crkd.make_splits("cells", 2, val=2, test="20%", data_root=root)
    assert [len(part) for part in (split.labeled, split.val, split.test)] == [2, 2, 2]
    steps: list[int] = []
    result = crkd.train(
        "cells",
        2,
        settings={
            "train.steps": 3,
            "train.log_every": 1,
            "model": {"name": "unet", "widths": [4, 4, 8, 8, 8]},
        },
        seed=7,
        device="cpu",
        out=tmp_path / "run",
        data_root=root,
        on_step=lambda step, values: steps.append(step),
    )
    assert result.checkpoint == tmp_path / "run" / "best.pth"
    assert result.metrics["steps"] == 3
    assert steps == [0, 1, 2, 3]
    assert load_checkpoint(result.checkpoint).config.train.seed == 7
    report = crkd.evaluate(result.checkpoint, data_root=root)
    assert report.facts["cases"] == 2
    masks = crkd.predict(source / "images", result.checkpoint, out=tmp_path / "masks", qc=True)
    assert (masks.written, masks.failures) == (10, [])
    confidences = [float(row["mean_confidence"]) for row in masks.quality]
    assert len(confidences) == 10
    assert confidences == sorted(confidences)
    assert {row["unlike_size"] for row in masks.quality} == {"no"}
    suggestions = crkd.suggest("cells", result.checkpoint, 2, data_root=root, notify=lines.append)
    assert {suggestion.case for suggestion in suggestions.cases} < set(split.unlabeled)
    assert len(suggestions.cases) == 2
    extended = crkd.make_splits("cells", 4, keep=2, data_root=root)
    assert extended.labeled[:2] == split.labeled
    assert (extended.val, extended.test) == (split.val, split.test)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2], indirect=True)
def test_training_is_that_of_the_command(tiny, cli, tmp_path):
    tiny()
    assert cli(*train_arguments(tmp_path, "train.steps=4", out="a")).exit_code == 0
    crkd.train(
        "toy",
        settings={"train.steps": 4},
        config=tmp_path / "config.yaml",
        split=tmp_path / "split.yaml",
        out=tmp_path / "b",
        data_root=tmp_path / "data",
    )
    assert_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert len(read_lines(tmp_path / "a")) == len(read_lines(tmp_path / "b"))
    assert (tmp_path / "b" / "curves.png").is_file()


@pytest.mark.slow
def test_folds(make_store, tmp_path):
    make_store(groups=6)
    root = tmp_path / "data"
    folds = crkd.make_splits("toy", 2, folds=2, data_root=root)
    assert [len(fold.held_out) for fold in folds.folds] == [3, 3]
    config = {"train.steps": 2, "model": {"name": "unet", "widths": [4, 4, 8, 8, 8]}}
    for number in (1, 2):
        result = crkd.train(
            "toy", 2, fold=number, settings=config, device="cpu", out=tmp_path / "x", data_root=root
        )
        assert result.checkpoint == tmp_path / "x" / f"fold{number}" / "last.pth"
    report = crkd.evaluate(tmp_path / "x", data_root=root)
    assert report.facts["cases"] == 6
    assert len(report.facts["folds"]) == 2


def test_problems_of_files_are_in_the_error(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / "raw" / part).mkdir(parents=True)
        (tmp_path / "raw" / part / "a.png").write_bytes(b"no picture")
    with pytest.raises(CrkdError) as error:
        crkd.prepare("cells", tmp_path / "raw", data_root=tmp_path / "data", workers=1)
    assert "a.png" in "".join([str(error.value), *error.value.details])
    with pytest.raises(CrkdError):
        Store(tmp_path / "data" / "prepared" / "cells")


@pytest.mark.slow
def test_the_notebook(tmp_path, monkeypatch):
    """Its cells run in order, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, object] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["dice"] > 0.15
