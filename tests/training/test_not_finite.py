"""A loss that is not finite: the step changes nothing, and a run of such steps ends."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from crkd_cli.errors import CrkdError
from crkd_cli.runtime.metrics_log import write_metrics
from crkd_cli.training.loop import train
from crkd_cli.training.plan import Plan
from crkd_cli.training.start import start
from tests.training.test_loop import assert_equal, quiet

Planner = Callable[..., Plan]


class Broken(torch.nn.Module):
    """A predictor whose outputs are not a number while `broken`."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.broken = inner, False

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y * float("nan") if self.broken else y


def test_a_step_that_is_not_finite_changes_nothing(tiny: Planner) -> None:
    planned = tiny("method=supervised")
    run = start(planned)
    run.method.student = Broken(run.method.student)  # type: ignore[assignment]
    before: dict[str, Tensor] = {}
    seen: list[float] = []
    every: dict[str, list[float]] = {"total": [], "grad_norm": []}
    after_step, optimizer_step = run.method.after_step, run.optimizer.step

    def record(loss: Tensor, lr: float) -> Tensor:
        norm = optimizer_step(loss, lr)
        every["total"].append(float(loss.detach()))
        every["grad_norm"].append(float(norm))
        return norm

    def watch(step: int) -> None:
        after_step(step)
        if run.method.student.broken:
            assert_equal(before, run.method.state_dict())
        next(run.method.buffers()).add_(1.0)  # as the average of a teacher's statistics moves
        before.update({name: value.clone() for name, value in run.method.state_dict().items()})
        run.method.student.broken = (
            step in (2, 3, 10) or step >= 14
        )  # so that steps 3, 4, 11 and all of the last line fail

    run.method.after_step = watch  # type: ignore[method-assign]
    run.optimizer.step = record  # type: ignore[method-assign]
    metrics = train(
        replace(run, val=[]),
        lambda step, values: seen.append(values["skipped"]) if values else None,
    )
    assert metrics["skipped"] == 8
    assert seen == [2.0, 2.0, 3.0, 8.0]
    assert metrics["last"]["total"] is None
    write_metrics(planned.folder, metrics)
    texts = [
        *(planned.folder / "log.jsonl").read_text().splitlines(),
        (planned.folder / "metrics.json").read_text(),
    ]
    *lines, last, _ = [
        json.loads(text, parse_constant=pytest.fail) for text in texts
    ]  # strict: no NaN
    assert [line["step"] for line in lines] == [5, 10, 15]
    for line in lines:
        for name, values in every.items():
            of_line = values[line["step"] - 5 : line["step"]]
            assert line[name] == pytest.approx(
                np.mean([one for one in of_line if np.isfinite(one)]), rel=1e-4
            )
    assert last["total"] is None


def test_ten_bad_steps_in_a_row_end_the_run(tiny: Planner) -> None:
    planned = tiny("method=supervised")
    run = start(planned)
    last = planned.folder / "last.pth"
    saved = planned.config.data.frame.dims == 3
    if saved:
        last.touch()
    run.method.student = Broken(run.method.student)  # type: ignore[assignment]
    run.method.student.broken = True  # type: ignore[assignment]
    state = f"{last} is the last good state" if saved else "nothing was saved yet"
    said = rf"not finite in 10 steps in a row before step 10 \(total, grad_norm\); {state}\. Try a smaller .* \(--out\)$"
    with pytest.raises(CrkdError, match=said):  # in fp32 already
        train(replace(run, val=[]), quiet)


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_short_run_of_bad_steps_alone_fails_too(tiny: Planner) -> None:
    run = start(tiny("method=supervised", "train.steps=3"))
    run.method.student = Broken(run.method.student)  # type: ignore[assignment]
    run.method.student.broken = True  # type: ignore[assignment]
    with pytest.raises(CrkdError, match="not finite in 3 steps in a row before step 3"):
        train(replace(run, val=[]), quiet)
