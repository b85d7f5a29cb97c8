"""Commands started at once on the same names, and stopped at random moments: see `races.py`."""

from pathlib import Path

import pytest

from tests.reliability.test_fuzz import run_module

TRIALS = 2  # of every command


@pytest.mark.slow
def test_races(tmp_path: Path) -> None:
    process = run_module("races", tmp_path, "--trials", TRIALS)
    output, _ = process.communicate()
    assert process.returncode == 0, output
