"""`crkd predict` on the command line."""

import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest
from PIL import Image

from crkd_cli.cli.predict import describe_values
from crkd_cli.config import Frame
from crkd_cli.data.store import ClassInfo
from tests.conftest import FLAT


@pytest.fixture
def checkpoint(make_checkpoint):
    return make_checkpoint(FLAT, Frame(resize=(32, 32)), path="runs/flat-supervised-1/last.pth")


@pytest.fixture
def scans(tmp_path, rng):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("b.png", "a.png"):
        Image.fromarray(rng.integers(0, 255, (33, 47)).astype(np.uint8)).save(folder / name)
    return folder


def test_the_newest_checkpoint_is_named_on_the_first_line(
    cli, checkpoint, scans, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = cli("predict", "scans", "--overlay")
    assert result.exit_code == 0, result.stderr
    first, second, *_ = result.stderr.splitlines()
    date = time.strftime("%Y-%m-%d", time.localtime(checkpoint.stat().st_mtime))
    assert first.startswith(
        "checkpoint: runs/flat-supervised-1/last.pth, trained on flat (1 labeled) with supervised, "
        f"step 10, written {date} "
    )
    assert second == "loading PyTorch"
    assert "2 masks written to" in result.stderr
    files = sorted(
        str(file.relative_to(tmp_path)) for file in tmp_path.glob("scans-masks/**/*.png")
    )
    assert files == [
        "scans-masks/a.png",
        "scans-masks/b.png",
        "scans-masks/overlays/a.png",
        "scans-masks/overlays/b.png",
    ]
    result = cli("predict", "scans")
    assert "0 masks written to" in result.stderr
    assert "2 skipped: already there, from any checkpoint (--overwrite)" in result.stderr


def test_no_checkpoint(cli, scans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli("predict", "scans")
    assert result.exit_code == 1
    assert "no checkpoint under runs" in result.stderr


def test_failures_are_listed_at_the_end(cli, checkpoint, scans):
    (scans / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    result = cli("predict", scans, "--checkpoint", checkpoint, "--quiet")
    assert result.exit_code == 1
    first, second = result.stderr.strip().splitlines()
    assert first == "error: 1 image failed:"
    assert "broken.png cannot be read" in second
    assert sorted(file.name for file in scans.with_name("scans-masks").iterdir()) == [
        "a.png",
        "b.png",
    ]


def test_one_file(cli, checkpoint, scans, tmp_path):
    result = cli(
        "predict", scans / "a.png", "--checkpoint", checkpoint, "--out", tmp_path / "deep" / "out"
    )
    assert result.exit_code == 0, result.stderr
    assert [file.name for file in (tmp_path / "deep" / "out").iterdir()] == ["a.png"]


def test_the_meaning_of_the_values_is_printed(cli, make_checkpoint, scans):
    classes = (ClassInfo(name="background", values=(0,)), ClassInfo(name="disc", values=(255, 7)))
    spec = msgspec.structs.replace(FLAT, classes=classes)
    checkpoint = make_checkpoint(spec, Frame(resize=(32, 32)))
    result = cli("predict", scans, "--checkpoint", checkpoint)
    assert result.stderr.splitlines()[-1] == "values: 0 background, 255 disc"
    masks = scans.with_name("scans-masks")
    assert set(np.unique(Image.open(masks / "a.png"))) == {0, 255}
    arguments = ("--checkpoint", checkpoint, "--class-numbers", "--overwrite")
    result = cli("predict", scans, *arguments)
    assert result.stderr.splitlines()[-1] == "values: 0 background, 1 disc"
    assert set(np.unique(Image.open(masks / "a.png"))) == {0, 1}


def test_the_meaning_of_many_values_is_a_table():
    classes = tuple((10 * k, f"c{k}") for k in range(10))
    assert list(describe_values(classes)) == [
        "values:",
        "  0 c0, 10 c1, 20 c2, 30 c3, 40 c4, 50 c5, 60 c6, 70 c7",
        "  80 c8, 90 c9",
    ]


@pytest.mark.slow
def test_values_that_do_not_fit_the_format_are_a_usage_error(cli, make_checkpoint, scans):
    classes = (ClassInfo(name="background", values=(0,)), ClassInfo(name="disc", values=(2**32,)))
    spec = msgspec.structs.replace(FLAT, classes=classes)
    checkpoint = make_checkpoint(spec, Frame(resize=(32, 32)))
    result = cli("predict", scans, "--checkpoint", checkpoint)
    assert result.exit_code == 2
    assert "but disc is 4294967296; give --class-numbers" in result.stderr


def test_quiet_prints_nothing(cli, checkpoint, scans):
    result = cli("predict", scans, "--checkpoint", checkpoint, "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["missing", "empty", "notes.txt"])
def test_the_input_is_checked_before_torch_is_loaded(checkpoint, tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    program = f"""
import sys
sys.argv = ["crkd", "predict", {str(tmp_path / name)!r}, "--checkpoint", {str(checkpoint)!r}]
from crkd_cli.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "1 False\n", result.stderr
    first, error = result.stderr.splitlines()
    assert first.startswith(f"checkpoint: {checkpoint}, trained on flat ")
    assert error.startswith(f"error: {tmp_path / name} ")


def test_wrong_input(cli, checkpoint, scans, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "text.csv").write_text("1,2")
    (tmp_path / "a file").touch()
    for arguments, code, message in (
        ([tmp_path / "missing"], 1, "does not exist"),
        ([tmp_path / "nothing"], 1, "contains no images"),
        ([tmp_path / "text.csv"], 1, "has no supported format"),
        ([scans, "--out", scans], 2, "images' own folder"),
        ([scans, "--dicom-seg"], 2, "contains no DICOM series; drop --dicom-seg"),
        ([scans, "--out", tmp_path / "a file" / "x"], 1, "cannot write to"),
    ):
        result = cli("predict", *arguments, "--checkpoint", checkpoint)
        assert result.exit_code == code, result.output
        assert message in result.stderr
