"""`crkd train`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crkd_cli.cli.bars import run_output
from crkd_cli.cli.console import command, info, warn
from crkd_cli.cli.options import DataRoot, Device, Quiet, Verbose, given_options
from crkd_cli.cli.train_output import (
    announce,
    announce_finished,
    announce_folds,
    announce_result,
    training_bar,
)
from crkd_cli.config import check_overrides
from crkd_cli.errors import UsageError
from crkd_cli.methods import METHODS
from crkd_cli.paths import resolve_data_root

if TYPE_CHECKING:
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
    folds: Annotated[
        bool,
        typer.Option(
            "--folds",
            help="Cross-validation: train one run per fold of crkd make-splits --folds, in "
            "subfolders fold1, fold2, …",
            rich_help_panel="Run",
        ),
    ] = False,
    fold: Annotated[
        int | None,
        typer.Option(
            "--fold",
            help="Train only this fold, for example as one of several jobs of a cluster.",
            metavar="N",
            rich_help_panel="Run",
        ),
    ] = None,
    parallel: Annotated[
        int,
        typer.Option(
            "--parallel",
            min=1,
            help="Train up to N runs of --seeds or --folds at once, in processes that share the "
            "device.",
            metavar="N",
            rich_help_panel="Run",
        ),
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Run folder. Default: runs/DATASET-METHOD-LABELED, with -folds for --folds.",
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

    If interrupted, rerun the same command to resume. With --seeds or --folds, this skips finished
    runs.

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
    _check_runs(seeds, folds, fold, parallel, budget)
    root = resolve_data_root(data_root)
    if dataset is not None:
        _check_dataset(root, dataset)
    info("loading PyTorch")
    from crkd_cli.training.parallel import watch_parent
    from crkd_cli.training.plan import Request

    watch_parent()
    if method and method.endswith(".py"):
        method = METHODS.add(Path(method))
    if device:
        sets.append(f"train.device={json.dumps(device)}")  # quoted: it may look like a number
    request = Request(
        dataset=dataset,
        labeled=labeled,
        method=method,
        config=config,
        split=split,
        out=out,
        sets=sets,
        data_root=root,
        fold=fold,
        stop_after=stop_after,
    )
    requests = _expand(request, seeds, folds)
    at_once = min(parallel, len(requests))
    if at_once > 1:
        changed = ("--seeds", "--folds", "--fold", "--parallel")
        folders = _train_at_once(requests, at_once, given_options(context, *changed))
    else:
        folders = _train_in_turn(requests, budget)
    if folds or fold is not None:
        announce_folds(folders, root, all_done=folds)
    elif len(folders) > 1:
        info(f"all {len(folders)} runs are done: {' '.join(map(str, folders))}")


def _check_dataset(root: Path, name: str) -> None:
    """Raise UsageError if there is no such dataset, before PyTorch is loaded."""
    from crkd_cli.data.store import Store

    Store(root / "prepared" / name)


def _check_runs(
    seeds: str | None, folds: bool, fold: int | None, parallel: int, budget: str | None
) -> None:
    """Raise UsageError if the options that choose several runs contradict each other."""
    from crkd_cli import world

    if folds and fold is not None:
        raise UsageError("--folds trains all folds, --fold one of them; give one of the two")
    if fold is not None and budget is not None:
        raise UsageError(
            "--budget fits all folds to one machine; give every --fold the same number of steps "
            "with --set train.steps=, or train them with --folds"
        )
    if parallel == 1:
        return
    if seeds is None and not folds:
        raise UsageError(
            "--parallel trains several runs at once; add --seeds 1337,1338 or --folds, or drop it"
        )
    if world.size() > 1:
        raise UsageError("--parallel does not work with torchrun; drop one of them")
    if budget is not None:
        raise UsageError(
            "--budget times a run that is alone on the machine; drop --parallel, or give the "
            "number of steps with --set train.steps="
        )


def _expand(request: "Request", seeds: str | None, folds: bool) -> "list[Request]":
    """Return the requests of all runs: every fold for every seed."""
    from crkd_cli.training.plan import all_folds, parse_seeds

    requests = [request]
    if seeds is not None:
        numbers = parse_seeds(seeds, request.sets)
        requests = [replace(request, seed=seed) for seed in numbers]
    if folds:
        requests = [one for request in requests for one in all_folds(request)]
    return requests


def _train_at_once(requests: "list[Request]", at_once: int, options: list[str]) -> list[Path]:
    """Train the runs in processes, with these options of the command; return their folders."""
    from crkd_cli.training.parallel import run_parallel
    from crkd_cli.training.plan import plan

    folders = [plan(request).folder for request in requests]  # reports mistakes in any of them
    commands = {}
    for request in requests:
        parts = {"seed": request.seed, "fold": request.fold}
        name = ", ".join(f"{part} {number}" for part, number in parts.items() if number is not None)
        seed = [] if request.seed is None else [f"--seeds={request.seed}"]
        fold = [] if request.fold is None else [f"--fold={request.fold}"]
        commands[name] = ["train", *options, *seed, *fold]
    with run_output(commands) as show:
        run_parallel(commands, at_once, show)
    return folders


def _train_in_turn(requests: "list[Request]", budget: str | None) -> list[Path]:
    """Train one run after the other; return their folders."""
    from crkd_cli.training.budget import apply_budget
    from crkd_cli.training.plan import plan

    if budget is not None:
        requests = apply_budget(requests, budget, info)
    # Reports mistakes in a later run before the first one takes hours.
    left = 1 + sum(not plan(request).finished for request in requests[1:])
    folders: list[Path] = []
    for request in requests:
        timed = left if budget is None and not folders else 0
        folders.append(_train(plan(request), timed))
    return folders


def _train(plan: "Plan", runs: int) -> Path:
    """Train one run from its last checkpoint to its end; return its folder.

    How long it takes is said for so many `runs`, and not at all for 0.
    """
    from crkd_cli.api import complete
    from crkd_cli.training.budget import announce_time

    announce(plan)
    if plan.finished:
        announce_finished(plan)
    elif runs:
        announce_time(plan, runs, info)
    with training_bar(plan) as report:
        result = complete(plan, report, warn, info)
    if not plan.finished:
        announce_result(plan, result.checkpoint)
    return plan.folder
