"""Choosing post-processing on validation cases: what is kept, stored, applied and left off."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crkd_cli.config import Frame
from crkd_cli.evaluation.choose_postprocessing import CANDIDATES, candidate_dice, choose_rules
from crkd_cli.inference.model import load_model
from crkd_cli.inference.postprocessing import postprocess
from crkd_cli.locks import release
from crkd_cli.metrics.overlap import confusion, dice
from crkd_cli.runtime.checkpoint import load_checkpoint, save_checkpoint
from crkd_cli.runtime.class_rule import ClassRule
from crkd_cli.runtime.run_folder import lock_run_folder

FRAME = Frame(resize=(32, 32))


def test_candidates_are_scored_like_whole_label_maps(rng):
    """With ignored pixels (class number 3), and classes that one of the maps lacks."""
    truth = rng.choice([0, 1, 2, 3], (20, 20), p=[0.4, 0.2, 0.3, 0.1]).astype(np.uint8)
    labels = rng.choice([0, 1, 2], (20, 20), p=[0.3, 0.3, 0.4]).astype(np.uint8)
    for predicted, reference in (
        (labels, truth),
        (labels, np.where(truth == 1, 0, truth)),
        (np.where(labels == 2, 0, labels), truth),
        (np.where(labels == 2, 0, labels), np.where(truth == 2, 0, truth)),
    ):
        scores = candidate_dice(predicted, reference, 3)
        for rule, of_rule in zip(CANDIDATES, scores, strict=True):
            processed = postprocess(predicted, [rule, rule])
            processed = np.where(reference == 3, 0, processed)
            expected = dice(confusion(processed, reference, 3))[1:]
            np.testing.assert_allclose(of_rule, expected)


def test_a_rule_is_kept_only_where_it_raises_dice():
    """A stray component beside a disc; two true components; a hole; a class that is nowhere."""
    truth = np.zeros((2, 30, 60), np.uint8)
    truth[0, 5:15, 5:15] = 1
    truth[0, 5:15, 25:35] = truth[0, 5:8, 40:43] = 2
    truth[0, 18:28, 5:15] = 3
    labels = truth[0].copy()
    labels[25:28, 55:58] = 1
    labels[22:24, 8:10] = 0
    scores = candidate_dice(labels, truth[0], 5)[np.newaxis]
    rules = choose_rules(scores)
    assert rules == [
        ClassRule(smallest_component=0.1),  # 9 of 100 pixels
        ClassRule(),
        ClassRule(fill_holes=True),
        ClassRule(),
    ]


@pytest.fixture
def noisy(make_store, make_checkpoint, tmp_path):
    """The checkpoint of a random network, which predicts many components, and the data root."""
    store = make_store(groups=6)
    parts = {"val": ("p03", "p04", "p05"), "test": ("p00", "p01")}
    file = make_checkpoint(store.spec, FRAME, "runs/toy/best.pth", seed=3, **parts)
    return file, tmp_path / "data"


def keep_largest(file: Path) -> tuple[ClassRule, ...]:
    """Store a rule that changes every noisy mask, and return it."""
    rules = (ClassRule(smallest_component=1.0),)
    save_checkpoint(replace(load_checkpoint(file), postprocessing=rules), file)
    return rules


def mean_dice(folder):
    return json.loads((folder / "summary.json").read_text())["mean"]["dice"]["mean"]


def test_the_rules_are_stored_and_applied(cli, noisy):
    """What the command reports is what `crkd evaluate` then finds, with and without the rules."""
    file, root = noisy
    data = ("--data-root", root)
    before = load_checkpoint(file)
    assert cli("evaluate", file, *data).exit_code == 0
    result = cli("postprocess", file.parent, *data)
    assert result.exit_code == 0, result.stderr
    row = next(line for line in result.stdout.splitlines() if line.strip().startswith("disc"))
    cells = [cell.strip() for cell in row.split("│")]
    after = load_checkpoint(file)
    assert after.postprocessing != ()
    assert cells[1] == str(after.postprocessing[0])
    assert before.weights.keys() == after.weights.keys()
    assert all(torch.equal(before.weights[name], after.weights[name]) for name in before.weights)
    assert (after.step, after.config, after.split) == (before.step, before.config, before.split)

    scores = {}
    for options in ([], ["--raw"]):
        result = cli("evaluate", file, "--part", "val", *data, *options)
        assert result.exit_code == 0, result.stderr
        assert ("post-processed" in result.stdout) == (options == [])
        assert ("post-processing was chosen on the validation cases" in result.stderr) == (
            options == []
        )
        scores["".join(options)] = mean_dice(
            file.parent / ("evaluation-strict-val" + "".join(options).replace("--", "-"))
        )
    assert cells[2:] == [f"{100 * scores['--raw']:.1f}", f"{100 * scores['']:.1f}"]
    assert scores[""] > scores["--raw"]


def test_compare_says_who_is_post_processed(cli, noisy):
    file, root = noisy
    data = ("--data-root", root)
    keep_largest(file)
    for options in ([], ["--raw"]):
        assert cli("evaluate", file, *data, *options).exit_code == 0
    folders = [file.parent / f"evaluation-strict-test{end}" for end in ("", "-raw")]
    text = " ".join(cli("compare", *folders).stdout.split())
    assert (
        "post-processing is used (supervised with post-processing), not used (supervised)" in text
    )
    rows = []
    for folder in folders:
        with (folder / "cases.csv").open(newline="") as table:
            rows.append([int(row["predicted_size"]) for row in csv.DictReader(table)])
    assert all(a < b for a, b in zip(*rows, strict=True)), rows


def test_predict_follows_the_rules_unless_raw(cli, noisy, tmp_path, rng):
    file, _ = noisy
    scans = tmp_path / "scans"
    scans.mkdir()
    Image.fromarray(rng.integers(0, 255, (33, 47)).astype(np.uint8)).save(scans / "a.png")

    def mask(name: str, *options: object) -> np.ndarray:
        result = cli("predict", scans, "--out", tmp_path / name, *options)
        assert result.exit_code == 0, result.stderr
        return np.asarray(Image.open(tmp_path / name / "a.png"))

    plain = mask("plain", "--checkpoint", file)
    rules = keep_largest(file)
    copy = tmp_path / "elsewhere.pth"
    copy.write_bytes(file.read_bytes())
    np.testing.assert_array_equal(mask("raw", "--checkpoint", copy, "--raw"), plain)
    processed = mask("processed", "--checkpoint", copy)
    np.testing.assert_array_equal(processed, postprocess(plain, rules))
    assert (processed != plain).any()
    array = np.asarray(Image.open(scans / "a.png"))
    np.testing.assert_array_equal(load_model(copy).predict(array), processed)
    np.testing.assert_array_equal(load_model(copy, raw=True).predict(array), plain)


def test_what_cannot_be_chosen(cli, noisy, make_checkpoint, tmp_path):
    file, root = noisy
    lock = lock_run_folder(file.parent)
    result = cli("postprocess", file, "--data-root", root)
    release(lock)
    assert result.exit_code == 2
    assert "another process is training in" in result.stderr
    assert load_checkpoint(file).postprocessing == ()
    spec = load_checkpoint(file).spec
    other = make_checkpoint(spec, FRAME, "runs/other/last.pth", test=("p00",))
    result = cli("postprocess", other, "--data-root", root)
    assert result.exit_code == 2
    assert "has no validation cases to choose post-processing on" in result.stderr
