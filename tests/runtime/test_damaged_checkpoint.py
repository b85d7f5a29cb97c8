"""Damaged checkpoints: every flipped bit of the content, cut files, values of wrong types."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch

from crkd_cli.config import Frame
from crkd_cli.errors import CrkdError
from crkd_cli.runtime.checkpoint import load_checkpoint
from tests.conftest import FLAT


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(FLAT, Frame(resize=(32, 32)), best={"step": 3, "dice": 0.5})


def refusal(file: Path) -> str:
    """The message with which the file is refused: one line that names it."""
    with pytest.raises(CrkdError) as error:
        load_checkpoint(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def content_ranges(file: Path) -> list[tuple[int, int]]:
    """The first byte and the length of every part of the ZIP archive, after its header."""
    data = file.read_bytes()
    ranges = []
    with ZipFile(file) as archive:
        for part in archive.infolist():
            header = part.header_offset
            lengths = np.frombuffer(data[header + 26 : header + 30], "<u2")
            ranges.append((header + 30 + int(lengths.sum()), part.file_size))
    return ranges


def test_a_flipped_bit_is_refused(checkpoint: Path, rng: np.random.Generator) -> None:
    """In weights, the configuration and every other part: one of 8 bits of a byte of each."""
    data = checkpoint.read_bytes()
    ranges = [(first, size) for first, size in content_ranges(checkpoint) if size]
    assert len(ranges) > 60
    for first, size in ranges:
        damaged = bytearray(data)
        damaged[first + rng.integers(size)] ^= 1 << rng.integers(8)
        checkpoint.write_bytes(damaged)
        refusal(checkpoint)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.999])
def test_a_file_that_was_not_written_completely_is_refused(checkpoint: Path, share: float) -> None:
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(share * len(data))])
    refusal(checkpoint)


def test_a_header_that_promises_a_compressed_part_is_refused(checkpoint: Path) -> None:
    with ZipFile(checkpoint) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with ZipFile(checkpoint, "w", compression=8) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    refusal(checkpoint)


def deep() -> Any:
    tree: Any = 0
    for _ in range(200):
        tree = [tree]
    return tree


RANGE = {"low": 1.0, "high": 2.0}
WRONG_VALUES: list[tuple[str, Any]] = [
    ("step", "ten"),
    ("step", -1),
    ("config", []),
    ("spec", {"name": "flat"}),
    ("split", None),
    ("split", {"train": 3}),
    ("data", 5),
    ("weights", None),
    ("weights", {"a": 3.0}),
    ("weights", {3: torch.zeros(1)}),
    ("statistics", [torch.zeros(1)]),
    ("training", "momentum"),
    ("training", {"metrics": {"steps": float("nan")}}),
    ("training", {"metrics": torch.zeros(2)}),
    ("best", 0.5),
    ("best", {"step": "3", "dice": 0.5}),
    ("best", {"dice": deep()}),
    ("precision", "int4"),
    ("user_method", ["mine.py"]),
    ("code_version", None),
    ("postprocessing", [{"smallest_component": 2.0}]),
    ("postprocessing", [{}, {}]),  # for one foreground class
    ("ranges", {"spacing_mm": None, "sides": [[1, 2]], "intensity": []}),
    ("ranges", {"spacing_mm": None, "sides": [RANGE] * 3, "intensity": [[RANGE] * 2]}),  # 3D
    ("ranges", {"spacing_mm": [RANGE], "sides": [RANGE] * 2, "intensity": [[RANGE] * 2]}),
    ("ranges", {"spacing_mm": None, "sides": [RANGE] * 2, "intensity": []}),  # no channel
]


def test_a_value_of_a_wrong_type_is_refused(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    for name, value in WRONG_VALUES:
        assert name in content
        torch.save({**content, name: value}, checkpoint)
        assert "damaged checkpoint" in refusal(checkpoint), (name, value)
    for name in content.keys() - {"postprocessing", "ranges"}:  # earlier versions have neither
        torch.save({key: value for key, value in content.items() if key != name}, checkpoint)
        refusal(checkpoint)
