"""Losses that are not finite: the step changes nothing, and a run of such steps ends."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from crkd_cli.errors import CrkdError
from crkd_cli.runtime.metrics_log import write_metrics
from crkd_cli.training.loop import Run, train
from crkd_cli.training.start import start
from tests.training.helpers import Planner, assert_equal, quiet


class Broken(torch.nn.Module):
    """A network whose outputs are NaN while `broken`."""

    def __init__(self, inner: torch.nn.Module, broken: bool = False) -> None:
        super().__init__()
        self.inner, self.broken = inner, broken

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y * float("nan") if self.broken else y


def break_student(run: Run, broken: bool) -> Broken:
    student = Broken(run.method.student, broken)
    run.method.student = student  # type: ignore[assignment]
    return student


def test_a_step_that_is_not_finite_changes_nothing(tiny: Planner) -> None:
    planned = tiny("method=supervised")
    run = start(planned)
    student = break_student(run, broken=False)
    before: dict[str, Tensor] = {}
    skipped: list[float] = []
    every: dict[str, list[float]] = {"total": [], "grad_norm": []}
    after_step, optimizer_step = run.method.after_step, run.optimizer.step

    def record(loss: Tensor) -> Tensor:
        norm = optimizer_step(loss)
        every["total"].append(float(loss.detach()))
        every["grad_norm"].append(float(norm))
        return norm

    def check(step: Tensor) -> None:
        after_step(step)
        if student.broken:
            assert_equal(before, run.method.state_dict())
        next(run.method.buffers()).add_(1.0)  # as a teacher's moving average changes its buffers
        before.update({name: value.clone() for name, value in run.method.state_dict().items()})
        # Steps 3, 4, 11 and all steps of the last log line fail.
        student.broken = step in (2, 3, 10) or step >= 14

    def report(step: int, values: dict[str, float]) -> None:
        if values:
            skipped.append(values["skipped"])

    run.method.after_step = check  # type: ignore[method-assign]
    run.optimizer.step = record  # type: ignore[method-assign]
    metrics = train(replace(run, val=[]), report)
    assert metrics["skipped"] == 8
    assert skipped == [2.0, 2.0, 3.0, 8.0]
    assert metrics["last"]["total"] is None

    write_metrics(planned.folder, metrics)
    log = (planned.folder / "log.jsonl").read_text().splitlines()
    *lines, last = [parse_strictly(text) for text in log]
    parse_strictly((planned.folder / "metrics.json").read_text())
    assert [line["step"] for line in lines] == [5, 10, 15]
    for line in lines:
        for name, values in every.items():
            window = np.array(values[line["step"] - 5 : line["step"]])
            expected = window[np.isfinite(window)].mean()
            assert line[name] == pytest.approx(expected, rel=1e-4)
    assert last["total"] is None


def parse_strictly(text: str) -> dict[str, float | None]:
    """Parse JSON without NaN and Infinity."""
    values: dict[str, float | None] = json.loads(text, parse_constant=pytest.fail)
    return values


def test_ten_bad_steps_in_a_row_end_the_run(tiny: Planner) -> None:
    planned = tiny("method=supervised")
    run = start(planned)
    break_student(run, broken=True)
    last = planned.folder / "last.pth"
    state = "nothing was saved yet"
    if planned.config.data.frame.dims == 3:
        last.touch()
        state = f"{last} is the last good state"
    # The run is in fp32 already: there is no advice to use it.
    message = (
        rf"not finite in 10 steps in a row before step 10 \(total, grad_norm\); {state}\. "
        r"Try a smaller .* \(--out\)$"
    )
    with pytest.raises(CrkdError, match=message):
        train(replace(run, val=[]), quiet)


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_short_run_of_bad_steps_alone_fails_too(tiny: Planner) -> None:
    run = start(tiny("method=supervised", "train.steps=3"))
    break_student(run, broken=True)
    with pytest.raises(CrkdError, match="not finite in 3 steps in a row before step 3"):
        train(replace(run, val=[]), quiet)
