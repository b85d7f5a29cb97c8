"""Validation: which snapshot is the best if classes are absent from some or all cases."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crkd_cli.config import Frame
from crkd_cli.data.store import Store, write_index
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.training.validator import Validator
from tests.training.helpers import Planner, logged, train_arguments

FRAME = Frame(resize=(32, 32))


class Threshold(nn.Module):
    """Predicts class 1 where the image is brighter than `limit`."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = nn.Parameter(torch.tensor(limit))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.limit - x, x - self.limit], dim=1)


class Snapshot(nn.Module):
    """A method whose predictor is a threshold. The discs have about 0.7 on 0.3."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.predictor = Threshold(limit)


NOTHING, DISC, EVERYTHING = 2.0, 0.5, -1.0


@pytest.fixture
def validate(
    make_store: Callable[..., Store], make_checkpoint: Callable[..., Path]
) -> Callable[..., tuple[list[float], int | None]]:
    """validate([NOTHING, DISC], with_disc=1): the Dice at step 1, 2, …, and the best step.

    Of five validation cases, `with_disc` have a disc; the others are background and noise.
    """

    def run(limits: list[float], with_disc: int) -> tuple[list[float], int | None]:
        store = make_store(groups=5)
        cases = list(store.cases)
        for case in cases[with_disc:]:
            for name, content in (("images", 0.3), ("labels", 0)):
                file = store.root / name / f"{case}.npy"
                array = np.load(file)
                np.save(file, np.full_like(array, content))
        write_index(store.root, store.index)
        store = Store(store.root)
        template = load_checkpoint(make_checkpoint(store.spec, FRAME, val=tuple(cases)))
        device = torch.device("cpu")
        validator = Validator(Snapshot(0.0), store, cases, template, device, torch.float32, None)
        scores = []
        for step, limit in enumerate(limits, start=1):
            validator.start(Snapshot(limit), step)
            score = validator.finish()
            assert score is not None
            assert score.dice["dice"] == pytest.approx(score.dice["dice/disc"], nan_ok=True)
            scores.append(score.dice["dice"])
        validator.close()
        best = template.path.with_name("best.pth")
        assert best.is_file() == (validator.best is not None)
        return scores, validator.best and validator.best["step"]

    return run


def test_an_empty_model_does_not_win_where_most_masks_are_empty(validate) -> None:
    """The empty one would have 4/5 if two empty masks were equal, the other one 1/5."""
    scores, best = validate([NOTHING, EVERYTHING, DISC, NOTHING], with_disc=1)
    empty, everywhere, found, again = scores
    assert empty == again == 0.0
    assert found == pytest.approx(1.0)  # one case; the others are empty in both masks
    assert 0 < everywhere < 0.1  # one small disc in a large prediction, and four false positives
    assert best == 3


def test_false_positives_in_empty_cases_cost(validate) -> None:
    """Of both models that find the discs, the one that is silent elsewhere is better."""
    scores, best = validate([DISC, EVERYTHING], with_disc=2)
    assert scores[0] == pytest.approx(1.0)
    assert scores[1] < 2 / 5
    assert best == 1


@pytest.mark.parametrize("limits", [[NOTHING, EVERYTHING], [EVERYTHING, NOTHING]])
def test_cases_without_foreground_choose_nothing(validate, limits) -> None:
    scores, best = validate(limits, with_disc=0)
    assert all(math.isnan(score) for score in scores)
    assert best is None


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_run_without_a_validation_score_keeps_its_last_checkpoint(
    cli, tiny: Planner, tmp_path: Path
) -> None:
    """Its command warns once, shows a dash and logs null."""
    plan = tiny()
    file = plan.store.root / "labels" / "p07.npy"
    np.save(file, np.zeros_like(np.load(file)))
    write_index(plan.store.root, plan.store.index)
    settings = ("method=supervised", "train.steps=3", "train.eval_every=1", "train.log_every=1")
    result = cli(*train_arguments(tmp_path, *settings))
    assert result.exit_code == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: no validation case contains disc, so best.pth is not chosen, and the last "
        "checkpoint is the result"
    ]
    assert "val Dice –" in result.stderr
    assert "nan" not in result.stderr
    assert f"done: {plan.folder / 'last.pth'}" in result.stderr
    assert not (plan.folder / "best.pth").exists()
    for name in ("val/dice", "val/dice/disc"):
        assert logged(plan.folder, name) == {1: None, 2: None, 3: None}
    assert json.loads((plan.folder / "metrics.json").read_text())["best"] is None
    assert (plan.folder / "curves.png").is_file()
