"""Fixtures of the tests of prediction."""

from pathlib import Path

import pytest


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder for images, whose masks go to scans-masks beside it."""
    folder = tmp_path / "scans"
    folder.mkdir()
    return folder
