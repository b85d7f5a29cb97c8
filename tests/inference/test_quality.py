"""quality.csv: its figures by hand, its order, and what becomes of an existing file."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from crkd_cli.cli.bars import progress
from crkd_cli.config import Frame
from crkd_cli.data.ranges import DataRanges, Range, Unlike
from crkd_cli.data.store import ChannelInfo, DatasetSpec, numbered_classes
from crkd_cli.inference.case_predictor import PredictOptions
from crkd_cli.inference.certainty import Certainty
from crkd_cli.inference.predict import PredictResult, predict
from crkd_cli.inference.quality import describe_first, quality_row, read_quality, write_quality
from crkd_cli.progress import Advance, Progress
from crkd_cli.runtime.checkpoint import load_checkpoint, save_checkpoint
from tests.conftest import FLAT

NAMES = ("organ", "=tumor")


def labels() -> np.ndarray:
    """12 voxels of class 1 in two parts, of which one is at the border, and 3 of class 2."""
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[2:4, 2:4, 2:4] = 1
    labels[2, 5, 4:8] = 1
    labels[4, 1:4, 5] = 2
    return labels


def test_figures_by_hand():
    certainty = Certainty(0.51239, 0.25)
    row = quality_row(
        "a.nii.gz", labels(), (5.0, 2.0, 1.5), NAMES, certainty, Unlike(False, True, None)
    )
    assert row == {
        "mask": "a.nii.gz",
        "mean_confidence": "0.5124",
        "disagreement": "0.2500",
        "volume_ml:organ": "0.18",  # 12 × 15 mm³
        "volume_ml:=tumor": "0.045",
        "components:organ": "2",
        "components:=tumor": "1",
        "touches_border": "organ",
        "unlike_spacing": "no",
        "unlike_size": "yes",
        "unlike_intensity": "",
    }


@pytest.mark.parametrize(
    ("array", "spacing", "column", "size"),
    [
        (labels(), None, "volume_voxels:organ", "12"),
        (labels()[3], (2.0, 1.5), "area_mm2:organ", "12"),  # 2 × 2 pixels of 3 mm²
        (labels()[3], None, "area_px:organ", "4"),
    ],
)
def test_the_unit_is_in_the_column(array, spacing, column, size):
    row = quality_row("a", array, spacing, NAMES, Certainty(0.9, None), None)
    assert row[column] == size
    assert row["unlike_spacing"] == row["unlike_size"] == row["unlike_intensity"] == ""


def rows_of(*confidences: float) -> list[dict[str, str]]:
    rows = []
    for number, value in enumerate(confidences):
        certainty = Certainty(value, None)
        rows.append(quality_row(f"{number}.nii", labels(), None, NAMES, certainty, None))
    return rows


def test_the_least_confident_mask_is_first_in_the_file_and_in_words(tmp_path):
    rows = write_quality(tmp_path, rows_of(*np.linspace(0.5, 0.9, 9), 0.1, 0.95, 0.99), NAMES)
    assert [row["mask"] for row in rows[:2]] == ["9.nii", "0.nii"]
    with (tmp_path / "quality.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["mask"] for row in table] == [row["mask"] for row in rows]
    title, *lines = describe_first(rows)
    assert title == "look at these first, the masks with the lowest confidence of 12:"
    assert len(lines) == 10
    assert lines[0] == "  0.10  9.nii: organ in 2 parts; touches the border"
    assert not [line for line in lines if "10.nii" in line or "11.nii" in line]
    assert describe_first([]) == []


def test_words_of_an_empty_mask_that_is_unlike_training():
    empty = np.zeros((4, 4), np.uint8)
    certainty = Certainty(0.2, None)
    row = quality_row("scan.png", empty, None, NAMES, certainty, Unlike(True, False, True))
    title, line = describe_first([row])
    assert title == "confidence in 1 mask, the lowest first:"
    assert line == "  0.20  scan.png: empty; spacing and intensity unlike training"


def test_lines_fit_a_terminal():
    row = rows_of(0.5)[0] | {"components:=tumor": "3"}
    assert describe_first([row])[1] == (
        "  0.50  0.nii: 2 classes in several parts; touches the border"
    )
    row["mask"] = "a" * 60 + ".nii.gz"
    assert len(describe_first([row])[1]) == 80


def test_rows_of_masks_that_were_replaced_are_not_read(tmp_path):
    for name in ("0.nii", "1.nii", "2.nii"):
        (tmp_path / name).touch()
    write_quality(tmp_path, rows_of(0.5, 0.6, 0.7), NAMES)
    (tmp_path / "1.nii").unlink()
    later = (tmp_path / "quality.csv").stat().st_mtime_ns + 10**9
    os.utime(tmp_path / "2.nii", ns=(later, later))
    kept = read_quality(tmp_path, NAMES)
    assert list(kept) == ["0.nii"]
    assert describe_first([kept["0.nii"]]) == describe_first(rows_of(0.5))
    assert read_quality(tmp_path, ("another class",)) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"mask\n0.nii\n",
        b"mask,mean_confidence\n0.nii,high\n",
        b"mask,mean_confidence\n0.nii,nan\n",
        b"mask,mean_confidence\n0.nii,0.5,7\n",
        b"mask,mean_confidence,components:organ\n0.nii,0.5,two\n",
        b"\xff\xfe\x00",
    ],
)
def test_a_damaged_file_has_no_rows(tmp_path, content):
    (tmp_path / "0.nii").touch()
    (tmp_path / "quality.csv").write_bytes(content)
    assert read_quality(tmp_path, NAMES) == {}


def write_pictures(folder: Path, rng, names: str) -> None:
    for name in names:
        pixels = rng.integers(0, 255, (37, 53)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")


def run(scans: Path, checkpoint: Path, shown: Progress = progress) -> PredictResult:
    options = PredictOptions(qc=True)
    return predict(scans, [checkpoint], lambda line: None, shown, options=options)


def test_masks_without_a_row_are_predicted_again(scans, make_checkpoint, rng):
    write_pictures(scans, rng, "ab")
    checkpoint = make_checkpoint(FLAT, Frame(resize=(32, 32)))
    predict(scans, [checkpoint], lambda line: None, progress)
    result = run(scans, checkpoint)
    assert (result.written, result.skipped) == (2, 0)
    write_pictures(scans, rng, "c")
    again = run(scans, checkpoint)
    assert (again.written, again.skipped) == (1, 2)
    assert sorted(row["mask"] for row in again.quality) == ["a.png", "b.png", "c.png"]
    with Image.open(result.folder / "c.png") as mask:
        size = np.count_nonzero(np.asarray(mask))
    (row,) = [row for row in again.quality if row["mask"] == "c.png"]
    assert row["area_px:disc"] == str(size)
    # Neither the table nor other files are taken for images of a case.
    third = predict(result.folder, [checkpoint], lambda line: None, progress)
    assert third.written == 3


@contextmanager
def interrupted(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Report the first image, and be interrupted there."""

    def advance(amount: int = 1, note: str | None = None) -> None:
        raise KeyboardInterrupt

    yield advance


def test_an_interrupted_run_keeps_its_rows(scans, make_checkpoint, rng):
    write_pictures(scans, rng, "abc")
    checkpoint = make_checkpoint(FLAT, Frame(resize=(32, 32)))
    with pytest.raises(KeyboardInterrupt):
        run(scans, checkpoint, interrupted)
    assert list(read_quality(scans.with_name("scans-masks"), ("disc",))) == ["a.png"]
    assert run(scans, checkpoint).skipped == 1


def test_the_checkpoint_says_what_is_unlike_training(cli, scans, make_checkpoint, rng):
    spec = DatasetSpec(
        name="solid",
        source="folder",
        classes=numbered_classes(("background", "ball")),
        channels=(ChannelInfo(modality="MR", intensity="zscore"),),
        dims=3,
    )
    image = rng.normal(100, 20, (16, 18, 20)).astype(np.float32)
    for name, spacing in (("near", 1.0), ("far", 3.0)):
        affine = np.diag([spacing, spacing, spacing, 1.0])
        nibabel.save(nibabel.Nifti1Image(image, affine), scans / f"{name}.nii")
    file = make_checkpoint(spec, Frame(patch=(16, 16, 16)))
    result = cli("predict", scans, "--checkpoint", file, "--qc")
    assert result.exit_code == 0, result.stderr
    with (scans.with_name("scans-masks") / "quality.csv").open(newline="") as table:
        assert {row["unlike_spacing"] for row in csv.DictReader(table)} == {""}

    sides = (Range(20.0, 20.0), Range(18.0, 18.0), Range(16.0, 16.0))
    features = Range(-6.0, -3.0), Range(3.0, 6.0)
    ranges = DataRanges((Range(1.0, 1.0),) * 3, sides, (features,))
    checkpoint = load_checkpoint(file)
    save_checkpoint(replace(checkpoint, ranges=ranges), file)
    result = cli("predict", scans, "--checkpoint", file, "--qc", "--overwrite")
    shown = [line for line in result.stderr.splitlines() if line.startswith("  0.")]
    lines = {line.split()[1]: line for line in shown}
    assert "spacing and size unlike training" in lines["far.nii:"]
    assert "unlike" not in lines["near.nii:"]
    assert result.stderr.splitlines()[-1].endswith("quality.csv")
