"""`crkd predict` on the command line."""

import numpy as np
import pytest
from PIL import Image

from crkd_cli.config import Frame
from crkd_cli.data.store import DatasetSpec, numbered_classes

SPEC = DatasetSpec(
    name="flat",
    source="folder",
    classes=numbered_classes(("background", "disc")),
    channels=1,
    dims=2,
    modality="gray",
    intensity="minmax",
)


@pytest.fixture
def checkpoint(make_checkpoint):
    return make_checkpoint(SPEC, Frame(resize=(32, 32)), path="runs/flat-supervised-1/last.pth")


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
    assert first == "checkpoint: runs/flat-supervised-1/last.pth"
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


def test_quiet_prints_nothing(cli, checkpoint, scans):
    result = cli("predict", scans, "--checkpoint", checkpoint, "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_wrong_input(cli, checkpoint, scans, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "text.csv").write_text("1,2")
    (tmp_path / "a file").touch()
    for arguments, code, message in (
        ([tmp_path / "missing"], 1, "does not exist"),
        ([tmp_path / "nothing"], 1, "contains no images"),
        ([tmp_path / "text.csv"], 1, "has no supported format"),
        ([scans, "--out", scans], 2, "images' own folder"),
        ([scans, "--out", tmp_path / "a file" / "x"], 1, "cannot write to"),
    ):
        result = cli("predict", *arguments, "--checkpoint", checkpoint)
        assert result.exit_code == code, result.output
        assert message in result.stderr
