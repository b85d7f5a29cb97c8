"""Commands started at once on the same names, and stopped at random moments: see `races.py`."""

import os
from pathlib import Path

import pytest

from tests.reliability.test_fuzz import SEED, run_module

TRIALS = os.environ.get("CRKD_RACES", "6")  # of every command


@pytest.mark.slow
def test_races(tmp_path: Path) -> None:
    ended = run_module("races", tmp_path, "--trials", TRIALS, "--seed", SEED)
    assert ended.returncode == 0, ended.stdout[-20_000:] + ended.stderr[-2000:]
