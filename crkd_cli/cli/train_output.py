"""What `crkd train` prints: what a run does, its progress, its result and what comes next."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from crkd_cli.cli.bars import progress
from crkd_cli.cli.console import info, warn
from crkd_cli.cli.options import as_typed
from crkd_cli.metrics.names import UNDEFINED
from crkd_cli.paths import resolve_data_root

if TYPE_CHECKING:
    from crkd_cli.training.loop import StepCallback
    from crkd_cli.training.plan import Plan


def announce(plan: "Plan") -> None:
    """Say what the run trains on, and how."""
    from crkd_cli.training.planned import describe, warn_of_enlarging
    from crkd_cli.training.sides import warn_of_sides

    split, config = plan.split, plan.config
    held_out = f", {len(split.fold.held_out)} held out" if split.fold else ""
    info(
        f"data: {plan.store.root}, split {split.title}: {len(split.labeled)} labeled, "
        f"{len(split.unlabeled)} unlabeled, {len(split.val)} validation, {len(split.test)} test"
        f"{held_out}"
    )
    info(f"run: {plan.folder}, method {config.method}, configuration {plan.source}")
    reason = f" ({plan.network_reason})" if plan.network_reason else ""
    info(f"network: {config.model.name}{reason}; augmentation: {config.data.augment}")
    if plan.author_settings:
        settings = ", ".join(plan.author_settings)
        info(f"using the authors' settings for {plan.store.spec.name}: {settings}")
    if plan.data_plan is not None:
        data = config.data, plan.data_plan, plan.store.root
        info(describe(*data))
        if warning := warn_of_enlarging(*data):
            warn(f"warning: {warning}")
    if warning := warn_of_sides(config.data, plan.store.spec):
        warn(f"warning: {warning}")


def announce_finished(plan: "Plan") -> None:
    """Say that the run has nothing left to do."""
    steps = plan.config.train.steps
    if plan.resumed and plan.resumed.step < steps:
        info(
            f"this run has done {plan.resumed.step} of {steps} steps; rerun without --stop-after "
            "to continue"
        )
    else:
        info(f"this run is finished ({steps} steps); --set train.steps={2 * steps} would extend it")


@contextmanager
def training_bar(plan: "Plan") -> Iterator["StepCallback"]:
    """Yield a callback that opens a progress bar when training begins."""
    from crkd_cli import world

    # Of the lines of parallel runs, the parent shows some, or makes bars of all.
    often = world.runs() > 1
    done = 0
    with ExitStack() as stack:
        advance: Callable[..., None] | None = None

        def report(step: int, values: dict[str, float]) -> None:
            nonlocal advance, done
            if advance is None:
                done = step
                bar = progress("training", plan.stop, "steps", done, often=often)
                advance = stack.enter_context(bar)
                return
            advance(step - done, _progress_note(values) if values else None)
            done = step

        yield report


def announce_result(plan: "Plan", checkpoint: Path) -> None:
    """Say what the result is, and what to do next."""
    steps = plan.config.train.steps
    outcome = "done" if plan.stop == steps else f"stopped after {plan.stop} of {steps} steps"
    line = f"{outcome}: {checkpoint}"
    if plan.split.fold is None:
        data_root = plan.store.root.parent.parent
        line += f"; next: crkd evaluate {checkpoint}{_data_root_option(data_root)}"
    info(line)


def announce_folds(runs: Sequence[Path], data_root: Path, *, all_done: bool) -> None:
    """Say what to do next with the `runs` of folds, which are all or only some."""
    from crkd_cli import world

    if world.runs() > 1:
        return  # the parent says it
    state = "all folds are done; next" if all_done else "once all folds are trained"
    for folder in dict.fromkeys(run.parent for run in runs):
        info(f"{state}: crkd evaluate {folder}{_data_root_option(data_root)}")


def _data_root_option(data_root: Path) -> str:
    """Return --data-root as it is typed, or nothing if it is the default."""
    is_default = data_root == resolve_data_root(None)
    return as_typed({"--data-root": None if is_default else data_root})


def _progress_note(values: dict[str, float]) -> str:
    """Return the values that are worth watching in one line, which a terminal may cut off."""
    from crkd_cli.runtime.metrics_log import RATES

    terms = [
        f"{name.replace('val/dice', 'val Dice')} {_format_value(name, values[name])}"
        for name in sorted(values, key=_place_in_note)
        if name not in RATES and "/dice/" not in name and not name.startswith("label_share")
    ]
    if values["skipped"]:
        terms.append(f"skipped {values['skipped']:.0f}")
    return "  ".join(terms)


def _place_in_note(name: str) -> int:
    """Return where a value comes: the scores and the shares of the classes before the losses."""
    first = ("val/dice", "share_", "kept")
    return next((k for k, start in enumerate(first) if name.startswith(start)), len(first))


def _format_value(name: str, value: float) -> str:
    if name.startswith("val/") and isnan(value):
        return UNDEFINED
    return f"{value:.3g}"
