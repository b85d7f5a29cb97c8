"""The comparison of label maps: on a tiny network the fast way and the published way are two roads to one answer."""

import json
from pathlib import Path

import pytest

from benchmarks import labels, performance_page
from benchmarks.speed.inputs import Sizes, synthetic
from crkd_cli.config import Frame
from crkd_cli.errors import CrkdError
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.training.loop import train

TINY = Sizes(acdc=(4, 40, 36), la=(52, 40, 36), patch=(48, 32, 32), stride=(18, 18, 4), patches=1)
FRAME = Frame(patch=TINY.patch, stride=TINY.stride)


@pytest.mark.slow
def test_label_maps_of_every_test_scan(tmp_path: Path) -> None:
    inputs = synthetic(tmp_path, TINY)
    run = inputs.run("la", method="supervised", steps=20)
    train(run, lambda step, values: None)
    record = labels.measure(load_checkpoint(run.checkpoint.path), inputs.store("la"), FRAME)
    assert [case["case"] for case in record["cases"]] == run.checkpoint.split.cases(
        run.store, "test"
    )
    assert record["mean"]["same"] > 0.95
    assert record["mean"]["same_dice"] == pytest.approx(record["mean"]["plain_dice"], abs=0.02)
    (tmp_path / "labels-la.json").write_text(
        json.dumps({"trained_by": "a command", **record}), encoding="utf-8"
    )
    assert f"{100 * record['mean']['same']:.2f}" in performance_page.page(tmp_path)


def test_a_network_of_resized_slices_is_refused(tmp_path: Path) -> None:
    inputs = synthetic(tmp_path, TINY)
    run = inputs.run("acdc", (32, 32), 1, method="supervised", steps=1)
    train(run, lambda step, values: None)
    with pytest.raises(CrkdError, match="not trained on windows"):
        labels.measure(load_checkpoint(run.checkpoint.path), inputs.store("acdc"), FRAME)
