"""From a plan to a run: builds the parts, restores the checkpoint, locks the run folder."""

from dataclasses import replace

import torch
import yaml
from filelock import FileLock

from crkd_cli import world
from crkd_cli.config import dump
from crkd_cli.data.changes import fingerprints
from crkd_cli.data.ranges import measure_ranges
from crkd_cli.errors import UsageError
from crkd_cli.locks import release
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method
from crkd_cli.paths import atomic_write, remove_temporary_files
from crkd_cli.runtime.build import build_method, describe_user_method, load_method
from crkd_cli.runtime.checkpoint import Checkpoint, load_checkpoint
from crkd_cli.runtime.device import (
    configure_backends,
    pick_device,
    pick_precision,
    precision_name,
)
from crkd_cli.runtime.distributed import check_same_step, sync_batch_norm
from crkd_cli.runtime.run_folder import lock_run_folder
from crkd_cli.training.batches import build_loader
from crkd_cli.training.loop import Run
from crkd_cli.training.optimizer import GuardedOptimizer
from crkd_cli.training.plan import Plan


def start(plan: Plan) -> Run:
    """Build a run, lock its folder, and write the configuration there."""
    run = build_run(plan)
    return replace(run, lock=_claim_folder(plan)) if world.rank() == 0 else run


def build_run(plan: Plan) -> Run:
    """Build the parts of a run and restore them from the checkpoint. Writes nothing."""
    config, resumed = plan.config, plan.resumed
    done = resumed.step if resumed else 0
    check_same_step(done, f"run folder {plan.folder}")
    device = pick_device(config.train.device)
    precision = _pick_precision(plan, device)
    configure_backends(deterministic=config.train.deterministic)
    method = _build_method(plan)
    user_method = describe_user_method(config.method, method)
    method = sync_batch_norm(method.to(device))
    optimizer = GuardedOptimizer(method, config.train)
    if resumed and resumed.training:
        optimizer.load_state_dict(resumed.training)
    loader = build_loader(config, plan.store, plan.split, type(method), device)
    val = plan.split.cases(plan.store, "val")
    checkpoint = Checkpoint(
        step=done,
        config=config,
        spec=plan.store.spec,
        split=plan.split,
        data=fingerprints(plan.store),
        weights={},
        training=None,
        best=resumed.best if resumed else None,
        precision=precision_name(precision),
        user_method=user_method,
        ranges=measure_ranges(plan.store, plan.split),
        path=plan.folder / "last.pth",
    )
    return Run(
        checkpoint=checkpoint,
        method=method.train(),
        optimizer=optimizer,
        loader=loader,
        store=plan.store,
        val=val,
        stop=plan.stop,
        device=device,
        precision=precision,
    )


def _build_method(plan: Plan) -> Method:
    if plan.resumed is None:
        return build_method(plan.config, plan.store.spec)
    # With the current number of steps: the schedules are those of a run of this length.
    return load_method(replace(plan.resumed, config=plan.config))


def _claim_folder(plan: Plan) -> FileLock:
    """Lock the run folder, remove leftovers of a killed run, and write the configuration."""
    lock = lock_run_folder(plan.folder)
    try:
        _check_current(plan)
        remove_temporary_files(plan.folder)
        with atomic_write(plan.folder / "config.yaml") as temporary:
            text = yaml.safe_dump(dump(plan.config), sort_keys=False)
            temporary.write_text(text, encoding="utf-8")
        if source := METHODS.source(plan.config.method):
            with atomic_write(plan.folder / f"{plan.config.method}.py") as temporary:
                temporary.write_bytes(source)
    except BaseException:
        release(lock)
        raise
    return lock


def _check_current(plan: Plan) -> None:
    """Raise UsageError if another process trained in the run folder after the plan was made."""
    last = plan.folder / "last.pth"
    now = load_checkpoint(last).step if last.exists() else 0
    if now != (plan.resumed.step if plan.resumed else 0):
        raise UsageError(
            f"another process has just trained in {plan.folder} up to step {now}; rerun this "
            "command to continue from there"
        )


def _pick_precision(plan: Plan, device: torch.device) -> torch.dtype:
    """Return the precision to train in; a resumed run keeps its own unless the user names one.

    On a CPU, oneDNN's bfloat16 weight gradient of a 3-wide 3D convolution over a first axis of
    length 2 reads memory that it never wrote (torch 2.13: other values at every call, sometimes
    NaN). Halving a first side of 4, 8, 16 or 32 leads to such an axis.
    """
    config = plan.config
    asked: str = config.train.precision
    if plan.resumed and asked == "auto":
        asked = plan.resumed.precision
    precision = pick_precision(asked, device)
    frame = config.data.frame
    affected = frame.dims == 3 and frame.size[0] in (4, 8, 16, 32)
    if device.type != "cpu" or precision != torch.bfloat16 or not affected:
        return precision
    if config.train.precision == "bf16":
        raise UsageError(
            f"bf16 on a CPU gives wrong gradients for a data.frame whose first side is "
            f"{frame.size[0]}; use --set train.precision=fp32, or another side, such as 24 or 48"
        )
    return torch.float32
