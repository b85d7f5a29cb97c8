"""Captured steps: the same as uncaptured ones, for every method; and what cannot be captured."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from crkd_cli.data.batch import Batch
from crkd_cli.errors import CrkdError
from crkd_cli.methods import METHODS
from crkd_cli.methods.supervised import Supervised
from crkd_cli.training import cuda_graphs
from crkd_cli.training.cuda_graphs import GraphedStep
from crkd_cli.training.interruptions import StoppedBySignalError
from crkd_cli.training.loop import Run
from crkd_cli.training.start import start
from crkd_cli.training.step import TrainingStep
from tests.training.helpers import (
    Planner,
    assert_equal,
    logged,
    signal_after,
    train_plan,
    weights,
)
from tests.training.tape import TapeCapturer

STEPS = 8
WARM_UP = 2


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "WARM_UP_STEPS", WARM_UP)


def build_step(run: Run) -> TrainingStep:
    config, classes = run.checkpoint.config.train, len(run.checkpoint.spec.classes)
    return TrainingStep(run.method, run.optimizer, config, classes, run.precision)


def state(run: Run, step: TrainingStep) -> dict[str, Tensor]:
    """Everything that a step changes."""
    tensors = dict(run.method.state_dict())
    for name, values in run.optimizer.state_dict().items():
        for number, value in enumerate(values if isinstance(values, list) else [values]):
            tensors[f"{name}.{number}"] = value
    means, _ = step.stats.collect()
    tensors |= {f"mean.{name}": torch.tensor(value) for name, value in means.items()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def steps(
    run: Run, make_runner: Callable[[TrainingStep], TrainingStep | GraphedStep]
) -> list[dict[str, Tensor]]:
    """Train for STEPS steps, the sixth on a batch with NaN; return the state after each."""
    step = build_step(run)
    runner = make_runner(step)
    states = []
    for number in range(STEPS):
        batch = run.loader.batch(run.loader.read(number), number)
        if number == 5:
            batch.labeled.image.fill_(float("nan"))
        step.prepare(number)
        runner.run(batch)
        states.append(state(run, step))
    return states


def same_bits(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def refuse(line: str) -> None:
    raise AssertionError(line)


def marked_slow(name: str) -> Any:
    return name if name in ("bcp", "crkd") else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("name", [marked_slow(name) for name in METHODS.names()])
def test_captured_steps_equal_uncaptured_ones_bit_for_bit(tiny: Planner, name: str) -> None:
    """Over a change of schedule, of phase, a batch with NaN, and several updates (LeFeD)."""
    sets = [f"method={name}", f"train.steps={STEPS}"]
    if name == "bcp":
        sets += ["methods.bcp.warmup=0.5", "methods.bcp.largest_component=false"]
    if name == "ad_mt":
        sets.append("methods.ad_mt.max_period=1")
    expected = steps(start(tiny(*sets, out="plain")), lambda step: step)

    capturer = TapeCapturer()
    captured: list[int] = []
    actual = steps(
        start(tiny(*sets, out="graphed")),
        lambda step: GraphedStep(
            step, capturer, refuse, lambda: captured.append(step.method.phase)
        ),
    )
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert one.keys() == other.keys()
        unequal = [key for key in one if not same_bits(one[key], other[key])]
        assert not unequal, f"step {number}"
    phases = 2 if name in ("ad_mt", "bcp") else 1
    assert captured == list(range(phases))
    assert capturer.captures == phases
    assert capturer.replays == STEPS - phases * WARM_UP


OBSTACLES = {
    "reads a value": "weight = 1.0 if float(weak.mean()) > 0.0 else 2.0",
    "branches on the step": "weight = 1.0 if step < 100 else 2.0",
    "selects by a mask": "weight = weak[weak > 0.5].mean()",
    "copies host data": "weight = torch.tensor(2.0) * weak.mean()",
    "is random on the host": "weight = random.random()",
}


@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.parametrize(("kind", "line"), OBSTACLES.items())
def test_a_step_that_cannot_be_captured_is_run_as_it_is(
    tiny: Planner, kind: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so once, and the copies that it is tried on leave no trace."""

    def losses(self: Supervised, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        names = {"weak": batch.labeled.image, "step": step, "torch": torch, "random": random}
        exec(line, names)
        weight = names["weight"]
        logits = self.student(batch.labeled.image)
        return {"total": weight * logits.square().mean()}

    monkeypatch.setattr(Supervised, "losses", losses)
    run_states = []
    notices: list[str] = []
    capturer = TapeCapturer()
    for out in ("plain", "graphed"):
        random.seed(0)
        run = start(tiny("method=supervised", f"train.steps={STEPS}", out=out))
        if out == "plain":
            run_states.append(steps(run, lambda step: step))
        else:
            run_states.append(
                steps(run, lambda step: GraphedStep(step, capturer, notices.append, lambda: None))
            )
    assert capturer.captures == 0
    assert len(notices) == 1
    assert notices[0].startswith("the step cannot be captured as a CUDA graph: ")
    if kind != "is random on the host":  # which the tries have used up
        for one, other in zip(*run_states, strict=True):
            assert all(same_bits(one[key], other[key]) for key in one)


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_capture_that_fails_is_one_line(tiny: Planner) -> None:
    class Failing(TapeCapturer):
        def capture(self, work: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("CUDA error: operation not permitted\nCompile with …")

    run = start(tiny("method=supervised", f"train.steps={STEPS}"))
    with pytest.raises(CrkdError, match=r"\(CUDA error: operation not permitted\).*graphs=false"):
        steps(run, lambda step: GraphedStep(step, Failing(), refuse, lambda: None))


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS.names())
def test_graphs_on_a_gpu_change_nothing(
    tiny: Planner, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty deterministic steps, stopped and resumed with graphs, equal those without, in bits."""
    monkeypatch.setattr(cuda_graphs, "WARM_UP_STEPS", 10)
    sets = [f"method={name}", "train.device=cuda", "train.steps=50", "train.eval_every=20"]
    sets += ["train.deterministic=true", "train.log_every=1"]
    train_plan(tiny(*sets, "train.graphs=false", out="plain"))
    with pytest.raises(StoppedBySignalError):
        train_plan(tiny(*sets, out="graphed"), signal_after(35))
    train_plan(tiny(*sets, out="graphed"))
    plain, graphed = (tiny(*sets, out=out).folder for out in ("plain", "graphed"))
    assert_equal(weights(graphed), weights(plain))
    assert logged(graphed, "total") == logged(plain, "total")
