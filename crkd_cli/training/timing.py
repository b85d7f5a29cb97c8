"""How long a run takes, from a few of its steps and validation cases that are timed beforehand."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from crkd_cli import world
from crkd_cli.inference.inferer import Inferer
from crkd_cli.training.batch_norm import BatchNormRecalibration
from crkd_cli.training.cuda_graphs import WARM_UP_STEPS, choose_runner
from crkd_cli.training.loop import Run
from crkd_cli.training.plan import Plan
from crkd_cli.training.start import build_run
from crkd_cli.training.step import TrainingStep
from crkd_cli.training.validator import validation_dice

MAX_STEPS, MIN_STEPS = 20, 3  # that are timed
MEASURED_TRAINING = 30.0  # seconds for which they should last
MEASURED_VALIDATION = 10.0  # seconds after which no further case is predicted


@dataclass(frozen=True)
class Timing:
    """What the parts of a run take, in seconds."""

    step: float  # the mean over the run
    validation: float  # of all validation cases; 0 without any
    measuring: float = 0.0  # what it took to find this out

    def seconds(self, steps: int, eval_every: int) -> float:
        """Return how long a run takes that validates every `eval_every` steps and at its end."""
        return steps * self.step + math.ceil(steps / eval_every) * self.validation


def measure(plan: Plan) -> Timing:
    """Time some steps and validation cases of a run that has not begun.

    They are computed with parts that are then thrown away, so that the run is the same as without.
    Process 0 decides for all.
    """
    begin = time.monotonic()
    run = build_run(plan)
    step = _time_steps(run)
    validation = _time_validation(run) if world.rank() == 0 and run.val else 0.0
    seconds = [step, validation, time.monotonic() - begin]
    agreed = world.broadcast(torch.tensor(seconds, dtype=torch.float64))
    return Timing(*agreed.tolist())


def spread(steps: int, count: int) -> list[int]:
    """Return the numbers of up to `count` steps, spread evenly over a run of `steps` steps."""
    count = min(count, steps)
    return [(2 * i + 1) * steps // (2 * count) for i in range(count)]


def time_by_phase(
    numbers: Sequence[int],
    phase_at: Callable[[int], int],
    take: Callable[[int], float],
    warm_up: int,
) -> list[float]:
    """Take steps by calling `take`, which returns seconds; return these seconds.

    The steps are taken phase by phase, each after `warm_up` steps that do not count.
    """
    seconds: list[float] = []
    phase: int | None = None
    for number in sorted(numbers, key=phase_at):
        if phase_at(number) != phase:
            phase = phase_at(number)
            for _ in range(warm_up):
                take(number)
        seconds.append(take(number))
    return seconds


def _time_steps(run: Run) -> float:
    """Return the mean seconds of a step, over steps that are spread over the run."""
    config, on_cpu = run.checkpoint.config.train, run.device.type == "cpu"
    classes = len(run.checkpoint.spec.classes)
    step = TrainingStep(run.method, run.optimizer, config, classes, run.precision)
    runner = choose_runner(step, config.graphs, lambda line: None, lambda: None)
    warm_up = 1 if on_cpu else WARM_UP_STEPS + 1  # the first one after them is captured

    def take(number: int) -> float:
        begin = time.monotonic()
        items = run.loader.read(number)
        read = time.monotonic()
        step.prepare(number)
        runner.run(run.loader.batch(items, number))
        if on_cpu:
            return time.monotonic() - begin
        torch.cuda.synchronize(run.device)
        # While a GPU computes, the processor reads the next batch.
        return max(read - begin, time.monotonic() - read)

    # With the first step, libraries choose their kernels, so that it takes longer than others.
    affordable = int(min(MEASURED_TRAINING / take(0), MAX_STEPS))
    count = world.broadcast(torch.tensor(max(affordable, MIN_STEPS)))
    numbers = spread(config.steps, int(count))
    return fmean(time_by_phase(numbers, run.method.phase_at, take, warm_up))


def _time_validation(run: Run) -> float:
    """Return the seconds of a validation, as Validator does it."""
    predictor = copy.deepcopy(run.method.predictor).requires_grad_(False).eval()
    template = run.checkpoint
    frame = template.config.data.frame
    inferer = Inferer([predictor], frame, template.spec, run.device, run.precision)
    begin = time.monotonic()
    if run.loader.unlabeled and template.config.train.recalibrate_batch_norm:
        BatchNormRecalibration(run.loader, run.precision)(predictor)
    before_cases = time.monotonic()
    predicted, elapsed = 0, 0.0
    while predicted < len(run.val) and elapsed < MEASURED_VALIDATION:
        validation_dice(inferer, run.store, run.val[predicted : predicted + 1])
        predicted += 1
        elapsed = time.monotonic() - before_cases
    return before_cases - begin + elapsed * len(run.val) / predicted
