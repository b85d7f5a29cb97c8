"""Methods that continue from the state that validated best, as BCP does between its stages."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from crkd_cli.errors import CrkdError
from crkd_cli.runtime.checkpoint import load_checkpoint, save_checkpoint
from crkd_cli.training.interruptions import StoppedBySignalError
from crkd_cli.training.loop import train
from crkd_cli.training.start import start
from tests.command_server import CommandServer
from tests.training.helpers import (
    Planner,
    assert_equal,
    logged,
    quiet,
    signal_after,
    train_arguments,
    train_plan,
)
from tests.training.processes import run_two

pytestmark = pytest.mark.slow

# The first stage is half of the run. The learning rate is so small that all scores are equal, and
# the earliest of equals is the best: that of step 2. Batch norm's running statistics and the
# optimizer's momentum still change.
BCP = (
    "method=bcp",
    "methods.bcp.warmup=0.5",
    "train.eval_every=2",
    "train.lr=1e-9",
    "train.log_every=1",
)


def state(folder: Path) -> dict[str, Tensor]:
    """The weights, statistics and momentum in last.pth."""
    last = load_checkpoint(folder / "last.pth")
    assert last.training is not None
    momentum = {f"momentum {n}": value for n, value in enumerate(last.training["momentum"])}
    return {**last.weights, **momentum}


def test_the_second_stage_begins_with_the_best_weights_and_their_optimizer(tiny: Planner) -> None:
    """They equal those of a run that was stopped at the best step, bit for bit."""
    notices: list[str] = []
    whole, early = tiny(*BCP, stop_after=10), tiny(*BCP, stop_after=2, out="early")
    train(start(whole), quiet, notify=notices.append)
    train_plan(early)
    assert len(set(logged(whole.folder, "val/dice").values())) == 1
    assert logged(whole.folder, "restored_step") == {10: 2}
    assert notices == ["step 10: restored step 2, the best so far on the validation cases"]
    assert_equal(state(early.folder), state(whole.folder))


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_stopped_and_continued_is_bit_equal(tiny: Planner) -> None:
    """Before, at and after the step that restores."""
    whole = tiny(*BCP, out="whole")
    train_plan(whole)
    for stops in ((5,), (10,), (3, 9, 13)):
        out = f"stopped at {stops}"
        for stop in (*stops, None):
            parts = tiny(*BCP, stop_after=stop, out=out)
            train_plan(parts)
        assert logged(parts.folder, "restored_step") == {10: 2}
        assert_equal(state(whole.folder), state(parts.folder))


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_stop_in_the_first_stage_adds_no_score(tiny: Planner) -> None:
    """It might be the best score, which an uninterrupted run would not have."""
    early = tiny(*BCP, stop_after=5)
    train_plan(early)
    assert [*logged(early.folder, "val/dice")] == [2, 4]
    train_plan(tiny(*BCP, stop_after=13))
    assert [*logged(early.folder, "val/dice")] == [2, 4, 6, 8, 10, 12, 13]


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_stopped_by_a_signal_at_the_step_that_restores(tiny: Planner) -> None:
    whole = tiny(*BCP, out="whole")
    train_plan(whole)
    with pytest.raises(StoppedBySignalError):
        train_plan(tiny(*BCP), signal_after(10))
    parts = tiny(*BCP)
    train_plan(parts)
    assert_equal(state(whole.folder), state(parts.folder))


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_restored_state_is_saved_at_once(tiny: Planner) -> None:
    """Once best.pth is of the second stage, a run that was killed could not restore the first."""
    last = tiny(*BCP).folder / "last.pth"
    steps: dict[int, int | None] = {}

    def look(done: int, values: dict[str, float]) -> None:
        steps[done] = load_checkpoint(last).step if last.exists() else None

    train_plan(tiny(*BCP), look)
    assert (steps[10], steps[11]) == (None, 10)


@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.parametrize(
    "sets",
    [("train.eval_every=100",), ("methods.bcp.restore_best=false",), ("methods.bcp.warmup=1",)],
)
def test_otherwise_it_continues_from_the_last_weights(tiny: Planner, sets: tuple[str, ...]) -> None:
    """The first stage is not validated, the user turned it off, or there is no second stage."""
    planned = tiny(*BCP, *sets)
    train_plan(planned)
    assert logged(planned.folder, "restored_step") == {}


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_best_checkpoint_without_the_optimizer_ends_the_run_in_one_line(tiny: Planner) -> None:
    """As an older version wrote it."""
    planned = tiny(*BCP, stop_after=8)
    train_plan(planned)
    best = planned.folder / "best.pth"
    save_checkpoint(replace(load_checkpoint(best), training=None), best)
    message = r"best\.pth lacks the optimizer's state because an older version wrote it"
    with pytest.raises(CrkdError, match=message):
        train_plan(tiny(*BCP))


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_every_process_restores(tiny: Planner, crkd: CommandServer, tmp_path: Path) -> None:
    """Without a stop, or with one after which all of them read the saved state."""
    tiny()
    calls: dict[str, list[list[str]]] = {"whole": [[]], "parts": [["--stop-after", "10"], []]}
    for out, options_of_calls in calls.items():
        for options in options_of_calls:
            arguments = [*train_arguments(tmp_path, *BCP, out=out), *options]
            ranks = run_two(crkd, tmp_path, *arguments)
            assert [rank.code for rank in ranks] == [0, 0], ranks
        assert logged(tmp_path / out, "restored_step") == {10: 2}
    assert_equal(state(tmp_path / "whole"), state(tmp_path / "parts"))
