"""How long a run will take, and fewer steps for one that must end in time (`--budget`)."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from crkd_cli.config import TrainConfig
from crkd_cli.errors import UsageError
from crkd_cli.progress import Notify
from crkd_cli.text import format_duration, shorten
from crkd_cli.training.plan import Plan, Request, plan
from crkd_cli.training.timing import Timing, measure

BUDGET = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
UNITS = (3600.0, 60.0, 1.0)  # seconds
USABLE = 0.95  # of the budget; the rest is for checkpoints, and for steps that take longer
VALIDATIONS = 10  # of a run that is cut to its budget: at most this many,
VALIDATION_SHARE = 0.2  # and at most this share of its time
MIN_STEPS = 10
# Timing a shorter run would make it noticeably longer.
MIN_STEPS_TO_ANNOUNCE = 1000
HINT = 3600.0  # the budget that is proposed for runs of at least twice its length, in seconds


class Schedule(NamedTuple):
    """The length of a run."""

    steps: int
    eval_every: int


def parse_budget(text: str) -> float:
    """Return the seconds of --budget, such as 45m, 6h or 1h30m. Raises UsageError."""
    match = BUDGET.fullmatch(text.strip())
    amounts = [float(amount or 0) for amount in match.groups()] if match else []
    seconds = sum(amount * unit for amount, unit in zip(amounts, UNITS, strict=False))
    if not seconds:
        raise UsageError(f"--budget {shorten(text)!r}: expected a time such as 45m, 6h or 1h30m")
    return seconds


def fit(
    timing: Timing, seconds: float, train: TrainConfig, *, keep_eval_every: bool = False
) -> Schedule:
    """Return the longest schedule, up to that of `train`, that takes at most `seconds`.

    A shorter one validates at most ten times, unless `keep_eval_every`. The number of its steps
    may be 0.
    """
    if timing.seconds(train.steps, train.eval_every) <= seconds:
        return Schedule(train.steps, train.eval_every)
    if keep_eval_every:
        seconds -= timing.validation  # the one at the end
        steps = int(seconds / (timing.step + timing.validation / train.eval_every))
        return Schedule(min(max(steps, 0), train.steps), train.eval_every)
    validations = VALIDATIONS
    if VALIDATIONS * timing.validation > VALIDATION_SHARE * seconds:
        validations = max(int(VALIDATION_SHARE * seconds / timing.validation), 1)
    steps = int((seconds - validations * timing.validation) / timing.step)
    eval_every = max(min(steps, train.steps), 0) // validations
    return Schedule(eval_every * validations, max(eval_every, 1))


def apply_budget(requests: Sequence[Request], budget: str, notify: Notify) -> list[Request]:
    """Shorten the runs so that each ends within `budget`; all get the same schedule.

    If one of them has begun, its schedule is kept, so that it is resumed exactly. Otherwise, the
    first is timed.

    Raises UsageError if `budget` is not a time, too short, or combined with train.steps.
    """
    seconds = parse_budget(budget)
    keys = {override.partition("=")[0] for override in requests[0].sets}
    if "train.steps" in keys:
        raise UsageError("--budget and --set train.steps both set the steps; give one of them")
    plans = [plan(request) for request in requests]
    begun = next((run.resumed for run in plans if run.resumed), None)
    if begun:
        schedule = Schedule(begun.config.train.steps, begun.config.train.eval_every)
        folder = begun.path.parent
        notify(f"time: {schedule.steps:,} steps, as {folder} began, whatever the budget")
    else:
        each = f", for each of {len(plans)} runs" if len(plans) > 1 else ""
        schedule = _schedule(plans[0], budget, seconds, "train.eval_every" in keys, each, notify)
    sets = [f"train.steps={schedule.steps}", f"train.eval_every={schedule.eval_every}"]
    return [replace(request, sets=[*request.sets, *sets]) for request in requests]


def announce_time(run: Plan, runs: int, notify: Notify) -> None:
    """Say how long a run takes that has not begun, unless it is short, and how long `runs` take."""
    train = run.config.train
    if run.resumed or run.stop < MIN_STEPS_TO_ANNOUNCE:
        return
    notify("timing a few steps")
    timing = measure(run)
    total = timing.seconds(run.stop, train.eval_every)
    line = f"time: {run.stop:,} steps take about {format_duration(total)}"
    if runs > 1:
        line += f", {runs} runs {format_duration(runs * total)}"
    if total >= 2 * HINT:
        steps = fit(timing, USABLE * HINT, train).steps
        line += f"; --budget 1h would train {steps:,}"
    notify(line)


def _schedule(
    run: Plan, budget: str, seconds: float, keep_eval_every: bool, each: str, notify: Notify
) -> Schedule:
    """Time a run and fit it into `seconds`, the budget. Raises UsageError if this is too short.

    What is said ends with `each`.
    """
    train = run.config.train
    notify("timing a few steps")
    timing = measure(run)
    left = USABLE * seconds - timing.measuring
    schedule = fit(timing, left, train, keep_eval_every=keep_eval_every)
    if schedule.steps < min(MIN_STEPS, train.steps):
        least = MIN_STEPS * timing.step + timing.validation + timing.measuring
        raise UsageError(
            f"--budget {budget} is too short: on this machine, a step takes about "
            f"{timing.step:.2g} s and a validation {format_duration(timing.validation)}; give at "
            f"least {math.ceil(least / USABLE / 60)}m, or make the network's input smaller "
            "(--set data.frame)"
        )
    total = format_duration(timing.seconds(*schedule))
    if schedule.steps == train.steps:
        notify(f"time: all {train.steps:,} steps fit into {budget}: about {total}{each}")
    else:
        notify(f"time: {schedule.steps:,} of {train.steps:,} steps, about {total}{each}")
    return schedule
