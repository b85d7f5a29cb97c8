"""A method that goes on from the state that was best on validation, as BCP does between its stages."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from crkd_cli.errors import CrkdError
from crkd_cli.runtime.checkpoint import load_checkpoint, save_checkpoint
from crkd_cli.training.interruptions import StoppedBySignalError
from crkd_cli.training.loop import train
from crkd_cli.training.plan import Plan
from crkd_cli.training.start import start
from tests.training.test_distributed import crkd, training
from tests.training.test_loop import assert_equal, quiet

Planner = Callable[..., Plan]

# The first stage is half of the run. The learning rate is so small that all scores are equal, of which the earliest is the best:
# step 2's. What moves are batch norm's running statistics and the optimizer's momentum.
BCP = (
    "method=bcp",
    "methods.bcp.warmup=0.5",
    "train.eval_every=2",
    "train.lr=1e-9",
    "train.log_every=1",
)


def logged(folder: Path, name: str) -> dict[int, float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def state(folder: Path) -> dict[str, Tensor]:
    """Weights, statistics and momentum of last.pth."""
    last = load_checkpoint(folder / "last.pth")
    assert last.training is not None
    return {
        **last.weights,
        **{f"momentum {n}": value for n, value in enumerate(last.training["momentum"])},
    }


def test_the_second_stage_begins_with_the_best_weights_and_their_optimizer(tiny: Planner) -> None:
    """Bit for bit those of a run that was stopped at the best step."""
    said: list[str] = []
    whole, early = tiny(*BCP, stop_after=10), tiny(*BCP, stop_after=2, out="early")
    train(start(whole), quiet, notify=said.append)
    train(start(early), quiet)
    assert len(set(logged(whole.folder, "val/dice").values())) == 1
    assert logged(whole.folder, "restored_step") == {10: 2}
    assert said == ["step 10: restored step 2, the best so far on the validation cases"]
    assert_equal(state(early.folder), state(whole.folder))


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_stopped_and_continued_is_bit_equal(tiny: Planner) -> None:
    """Before, at and after the step that restores."""
    whole = tiny(*BCP, out="whole")
    train(start(whole), quiet)
    for stops in ((5,), (10,), (3, 9, 13)):
        out = f"stopped at {stops}"
        for stop in (*stops, None):
            parts = tiny(*BCP, stop_after=stop, out=out)
            train(start(parts), quiet)
        assert logged(parts.folder, "restored_step") == {10: 2}
        assert_equal(state(whole.folder), state(parts.folder))


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_stop_in_the_first_stage_adds_no_score(tiny: Planner) -> None:
    """It might be the best one, which a run in one go would not know of."""
    early = tiny(*BCP, stop_after=5)
    train(start(early), quiet)
    assert [*logged(early.folder, "val/dice")] == [2, 4]
    train(start(tiny(*BCP, stop_after=13)), quiet)
    assert [*logged(early.folder, "val/dice")] == [2, 4, 6, 8, 10, 12, 13]


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_stopped_by_a_signal_at_the_step_that_restores(tiny: Planner) -> None:
    whole = tiny(*BCP, out="whole")
    train(start(whole), quiet)

    def stop_once(done: int, values: dict[str, float]) -> None:
        if done == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedBySignalError):
        train(start(tiny(*BCP)), stop_once)
    parts = tiny(*BCP)
    train(start(parts), quiet)
    assert_equal(state(whole.folder), state(parts.folder))


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_what_was_restored_is_saved_at_once(tiny: Planner) -> None:
    """Before best.pth may be of the second stage: a run killed there would have nothing to go back to."""
    last = tiny(*BCP).folder / "last.pth"
    steps: dict[int, int | None] = {}

    def look(done: int, values: dict[str, float]) -> None:
        steps[done] = load_checkpoint(last).step if last.exists() else None

    train(start(tiny(*BCP)), look)
    assert (steps[10], steps[11]) == (None, 10)


@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.parametrize(
    "sets",
    [("train.eval_every=100",), ("methods.bcp.restore_best=false",), ("methods.bcp.warmup=1",)],
)
def test_otherwise_it_goes_on_from_the_last_weights(tiny: Planner, sets: tuple[str, ...]) -> None:
    """Nothing was validated in the first stage; the user wants it so; no second stage follows."""
    planned = tiny(*BCP, *sets)
    train(start(planned), quiet)
    assert logged(planned.folder, "restored_step") == {}


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_best_checkpoint_without_the_optimizer_ends_the_run_in_one_line(tiny: Planner) -> None:
    """As an older version wrote it."""
    planned = tiny(*BCP, stop_after=8)
    train(start(planned), quiet)
    best = planned.folder / "best.pth"
    save_checkpoint(replace(load_checkpoint(best), training=None), best)
    with pytest.raises(
        CrkdError, match=r"best\.pth lacks the optimizer's state because an older version wrote it"
    ):
        train(start(tiny(*BCP)), quiet)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2], indirect=True)
def test_every_process_restores(tiny: Planner, tmp_path: Path) -> None:
    """In one go or, with all of them reading the saved state, in two: the same weights."""
    tiny()
    for out, stops in (("whole", [[]]), ("parts", [["--stop-after", "10"], []])):
        for number, options in enumerate(stops):
            arguments: list[Any] = [*training(tmp_path, *BCP, out=out), *options]
            ranks = crkd(tmp_path / f"log-{out}-{number}", *arguments)
            assert ranks.end() == 0, ranks.said(0) + ranks.said(1)
        assert logged(tmp_path / out, "restored_step") == {10: 2}
    assert_equal(state(tmp_path / "whole"), state(tmp_path / "parts"))
