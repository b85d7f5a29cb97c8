"""Many classes of very different sizes: what `supervised` finds, CRKD finds too."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from benchmarks.organs import write
from tests.training.helpers import read_lines, set_options

SETTINGS = (
    "data.labeled_batch_size=8",
    "data.unlabeled_batch_size=8",
    "model={name: unet, widths: [8, 16, 32, 48, 64]}",
    "train.steps=200",
    "train.lr=0.05",
    "train.eval_every=200",
    "train.device=cpu",
    "methods.crkd={ema_decay: 0.9}",  # as for the phantom: the run is short
)


@pytest.mark.slow
def test_no_class_starves_that_supervised_finds(cli: Callable[..., Result], tmp_path: Path) -> None:
    """12 organs, the largest 100 times the size of the smallest; each smaller one may be absent."""
    write(tmp_path / "organs", organs=12, cases=60, size=(48, 48))
    root = ("--data-root", tmp_path / "data")
    for arguments in (
        ("prepare-data", "organs", "--source", tmp_path / "organs"),
        ("make-splits", "organs", "--labeled", "8", "--val", "16", "--test", "0"),
    ):
        result = cli(*arguments, *root)
        assert result.exit_code == 0, result.stderr
    supervised, crkd = (
        dice_by_class(cli, tmp_path / method, "--method", method, *root)
        for method in ("supervised", "crkd")
    )
    found = [name for name, score in supervised.items() if score >= 0.2]
    assert len(found) >= 4
    starved = {name: crkd[name] for name in found if crkd[name] <= 0.5 * supervised[name]}
    assert not starved, f"{starved} of {supervised}"


def dice_by_class(
    cli: Callable[..., Result], out: Path, *arguments: str | Path
) -> dict[str, float]:
    """Train on the organs and return the last Dice of every class on the validation cases."""
    train = ("train", "--dataset", "organs", "--labeled", "8", "--out", out)
    result = cli(*train, *set_options(SETTINGS), *arguments)
    assert result.exit_code == 0, result.stderr
    last = [line for line in read_lines(out) if "val/dice" in line][-1]
    return {name: last[name] for name in last if name.startswith("val/dice/")}
