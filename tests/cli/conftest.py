"""Fixtures that run prepare-data, and that write a small dataset for it."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def prepare_data(cli, tmp_path):
    """prepare_data("mine", "--source", folder) returns (exit code, stderr)."""

    def call(*args):
        result = cli("prepare-data", *args, "--data-root", tmp_path / "data")
        assert result.stdout == "" or "--check" in args  # which lists the files
        assert "\x1b" not in result.stderr
        assert "Traceback" not in result.stderr
        return result.exit_code, result.stderr

    return call


@pytest.fixture
def raw_folder(tmp_path, rng):
    """Four gray pictures with labels 0 and 1."""
    root = tmp_path / "mine"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for case in "abcd":
        image = rng.integers(0, 200, (20, 30), dtype=np.uint8)
        label = rng.integers(0, 2, (20, 30), dtype=np.uint8)
        Image.fromarray(image).save(root / "images" / f"{case}.png")
        Image.fromarray(label).save(root / "labels" / f"{case}.png")
    return root
