"""Many files with the same problem: a terminal shows three of them, a file all."""

import shutil

import numpy as np
import pytest
from PIL import Image

from crkd_cli.config import Frame
from tests.conftest import FLAT
from tests.terminal import in_terminal


@pytest.fixture
def folder(raw_folder, tmp_path):
    """Eight images, five of them empty, and one label that is turned."""
    folder = tmp_path / "many"
    for name in "abcdefgh":
        for part in ("images", "labels"):
            target = folder / part / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(raw_folder / part / "a.png", target)
    for name in "abcde":
        (folder / "images" / f"{name}.png").write_bytes(b"")
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(folder / "labels/g.png")
    return folder


def test_prepare_data(prepare_data, folder, tmp_path):
    code, piped = prepare_data("mine", "--source", folder)
    assert code == 1
    for name in "abcde":
        assert f"error: {name}: images/{name}.png is empty" in piped
    assert "and 2 similar" not in piped

    arguments = ("prepare-data", "mine", "--source", folder, "--data-root", tmp_path)
    code, shown = in_terminal("stderr", 300, *arguments)
    assert code == 1
    assert shown.count(".png is empty") == 3
    assert shown.count("and 2 similar; add 2> FILE to write all to a file") == 1
    assert "labels/g.png has shape (30, 20)" in shown
    assert "error: 6 problems in" in shown


@pytest.mark.slow  # loads PyTorch
def test_predict(cli, make_checkpoint, folder, tmp_path):
    checkpoint = make_checkpoint(FLAT, Frame(resize=(32, 32)))
    arguments = ("predict", folder / "images", "--checkpoint", checkpoint, "--out", tmp_path / "x")
    assert cli(*arguments).stderr.count(".png is empty") == 5
    code, shown = in_terminal("stderr", 300, *arguments)
    assert code == 1
    assert shown.count(".png is empty") == 3
    assert "\n  and 2 similar; add 2> FILE to write all to a file" in shown
