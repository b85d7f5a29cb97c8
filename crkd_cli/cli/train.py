"""`crkd train`."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crkd_cli.cli.bars import progress, run_output
from crkd_cli.cli.console import command, info, warn
from crkd_cli.cli.options import DataRoot, Device, Quiet, Verbose, as_typed, given_options
from crkd_cli.config import check_overrides
from crkd_cli.errors import UsageError
from crkd_cli.methods import METHODS
from crkd_cli.metrics.names import UNDEFINED

if TYPE_CHECKING:
    from crkd_cli.training.loop import StepCallback
    from crkd_cli.training.plan import Plan, Request


@command
def train(
    context: typer.Context,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="isic2018, kvasir, acdc, la, phantom, phantom3d, or a dataset of your own.",
            rich_help_panel="Data",
        ),
    ] = None,
    labeled: Annotated[
        str | None,
        typer.Option(
            "--labeled",
            help="Labeled patients: a number such as 4, a share such as 5%, or all.",
            rich_help_panel="Data",
        ),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(
            "--split",
            help="Split file to use instead of the one for --labeled.",
            rich_help_panel="Data",
        ),
    ] = None,
    data_root: DataRoot = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="One of those that `crkd methods` lists, or your own file: ./my_method.py.",
            metavar="NAME|FILE",
            rich_help_panel="Run",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="Configuration file. Default: the one packaged for the dataset.",
            rich_help_panel="Run",
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a configuration key: --set train.steps=2000.",
            rich_help_panel="Run",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            help="Train one run per seed, in folders that end in -seedN: 1337,1338,1339.",
            metavar="N,N,…",
            rich_help_panel="Run",
        ),
    ] = None,
    parallel: Annotated[
        int,
        typer.Option(
            "--parallel",
            min=1,
            help="Train up to N runs of --seeds at once, in processes that share the device.",
            metavar="N",
            rich_help_panel="Run",
        ),
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Run folder. Default: runs/DATASET-METHOD-LABELED.",
            rich_help_panel="Run",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Shorten the run so that it ends in time on this machine: 45m, 6h or 1h30m.",
            rich_help_panel="Run",
        ),
    ] = None,
    stop_after: Annotated[
        int | None,
        typer.Option(
            "--stop-after",
            min=1,
            metavar="STEPS",
            help="Stop early, after STEPS steps, with the schedules of the full run.",
            rich_help_panel="Run",
        ),
    ] = None,
    device: Device = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a model on a few labeled and many unlabeled cases.

    Example: crkd train --dataset la --labeled 4

    The run folder gets the checkpoints, the log and the resolved configuration.

    If interrupted, rerun the same command to resume. With --seeds, this skips finished runs.

    To extend a finished run, rerun it with a larger --set train.steps=.

    With --budget, a few steps are timed and the run is made as long as the time permits; the
    schedules are those of a run of this length, and a resumed run keeps it.

    With --stop-after, the run ends early, validated and saved; rerun without it to continue.

    On several GPUs: torchrun --nproc_per_node=N -m crkd_cli train, with the same options.
    """
    sets = list(sets or [])
    check_overrides(sets)
    if method and not method.endswith(".py"):
        METHODS.check_name(method)
    info("loading PyTorch")
    from crkd_cli.paths import resolve_data_root
    from crkd_cli.training.parallel import watch_parent
    from crkd_cli.training.plan import Request, parse_seeds

    watch_parent()
    if method and method.endswith(".py"):
        method = METHODS.add(Path(method))
    if device:
        sets.append(f"train.device={json.dumps(device)}")  # quoted: it may look like a number
    run_seeds: list[int | None] = [None]
    if seeds is not None:
        run_seeds = [*parse_seeds(seeds, sets)]
    _check_parallel(parallel, seeds, budget)
    root = resolve_data_root(data_root)
    requests = [
        Request(
            dataset=dataset,
            labeled=labeled,
            method=method,
            config=config,
            split=split,
            out=out,
            sets=sets,
            data_root=root,
            seed=seed,
            stop_after=stop_after,
        )
        for seed in run_seeds
    ]
    at_once = min(parallel, len(requests))
    if at_once > 1:
        folders = _train_at_once(requests, at_once, given_options(context, "--seeds", "--parallel"))
    else:
        folders = _train_in_turn(requests, budget)
    if len(folders) > 1:
        info(f"all {len(folders)} runs are done: {' '.join(map(str, folders))}")


def _check_parallel(parallel: int, seeds: str | None, budget: str | None) -> None:
    """Raise UsageError if --parallel is not possible."""
    from crkd_cli import world

    if parallel == 1:
        return
    if seeds is None:
        raise UsageError(
            "--parallel trains the runs of several seeds at once; add --seeds 1337,1338, or drop it"
        )
    if world.size() > 1:
        raise UsageError("--parallel does not work with torchrun; drop one of them")
    if budget is not None:
        raise UsageError(
            "--budget times a run that is alone on the machine; drop --parallel, or give the "
            "number of steps with --set train.steps="
        )


def _train_at_once(requests: "list[Request]", at_once: int, options: list[str]) -> list[Path]:
    """Train the runs in processes, with these options of the command; return their folders."""
    from crkd_cli.training.parallel import run_parallel
    from crkd_cli.training.plan import plan

    folders = [plan(request).folder for request in requests]  # reports mistakes in any of them
    commands = {
        f"seed {request.seed}": ["train", *options, f"--seeds={request.seed}"]
        for request in requests
    }
    with run_output(commands) as show:
        run_parallel(commands, at_once, show)
    return folders


def _train_in_turn(requests: "list[Request]", budget: str | None) -> list[Path]:
    """Train one run after the other; return their folders."""
    from crkd_cli.training.budget import apply_budget
    from crkd_cli.training.plan import plan

    if budget is not None:
        requests = apply_budget(requests, budget, info)
    for request in requests[1:]:
        plan(request)  # report mistakes in a later run before the first one takes hours
    folders: list[Path] = []
    for request in requests:
        folders.append(_train(plan(request), announce_time=budget is None and not folders))
    return folders


def _train(plan: "Plan", *, announce_time: bool) -> Path:
    """Train one run from its last checkpoint to its end; return its folder."""
    from crkd_cli.api import complete
    from crkd_cli.training.budget import announce

    _announce(plan)
    if plan.finished:
        _announce_finished(plan)
    elif announce_time:
        announce(plan, info)
    with _training_bar(plan) as report:
        result = complete(plan, report, warn, info)
    if not plan.finished:
        _announce_result(plan, result.checkpoint)
    return plan.folder


def _announce(plan: "Plan") -> None:
    from crkd_cli.training.planned import describe, warn_of_enlarging
    from crkd_cli.training.sides import warn_of_sides

    split, config = plan.split, plan.config
    info(
        f"data: {plan.store.root}, split {split.name}: {len(split.labeled)} labeled, "
        f"{len(split.unlabeled)} unlabeled, {len(split.val)} validation, {len(split.test)} test"
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


def _announce_finished(plan: "Plan") -> None:
    steps = plan.config.train.steps
    if plan.resumed and plan.resumed.step < steps:
        info(
            f"this run has done {plan.resumed.step} of {steps} steps; rerun without --stop-after "
            "to continue"
        )
    else:
        info(f"this run is finished ({steps} steps); --set train.steps={2 * steps} would extend it")


@contextmanager
def _training_bar(plan: "Plan") -> Iterator["StepCallback"]:
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


def _announce_result(plan: "Plan", checkpoint: Path) -> None:
    """Say what the result is, and what to do next."""
    from crkd_cli.paths import resolve_data_root

    steps = plan.config.train.steps
    outcome = "done" if plan.stop == steps else f"stopped after {plan.stop} of {steps} steps"
    data_root = plan.store.root.parent.parent
    is_default = data_root == resolve_data_root(None)
    options = as_typed({"--data-root": None if is_default else data_root})
    info(f"{outcome}: {checkpoint}; next: crkd evaluate {checkpoint}{options}")


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
