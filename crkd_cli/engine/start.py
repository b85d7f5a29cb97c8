"""From a command line to a run: the configuration, the split, the folder, and whether there is something to resume."""

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
import yaml

from crkd_cli import world
from crkd_cli.config import Config, dump, load
from crkd_cli.data.case import Store
from crkd_cli.data.splits import Split, find, label_key
from crkd_cli.engine import checkpoint as checkpoints
from crkd_cli.engine.assemble import build_data, build_method, default_config, load_method, own, own_digest
from crkd_cli.engine.checkpoint import Checkpoint
from crkd_cli.engine.distributed import check_same, synchronised
from crkd_cli.engine.foreign import file_of
from crkd_cli.engine.hardware import pick_device, pick_precision, set_up, short_name
from crkd_cli.engine.optimizer import GuardedOptimizer
from crkd_cli.engine.train import Run
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.methods import METHODS
from crkd_cli.paths import atomic, packaged

# What may differ between the command that started a run and the one that goes on with it.
FREE = (
    "train.steps", "train.device", "train.log_every", "train.eval_every", "train.save_minutes", "train.tensorboard",
    "train.predictor",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What the user asked of `crkd train`."""

    dataset: str | None
    labeled: str | None
    method: str | None
    config: Path | None
    split: Path | None
    out: Path | None
    sets: list[str]
    data_root: Path
    seed: int | None = None    # one of --seeds: the folder's name tells it
    stop_after: int | None = None    # steps after which to stop, before the run's end


@dataclass(frozen=True)
class Plan:
    """A request made definite."""

    config: Config
    split: Split
    store: Store
    folder: Path
    source: Path               # the configuration file
    resumed: Checkpoint | None
    published: list[str]       # what the method's authors set otherwise than this file, key=value
    stop: int                  # the step after which training stops: the last one, or that of --stop-after

    @property
    def finished(self) -> bool:
        """Whether no step is left to do before `stop`."""
        return self.resumed is not None and self.resumed.step >= self.stop


def seeds_of(text: str, sets: list[str]) -> list[int]:
    """The seeds that --seeds names: "1337,1338". Raises UsageError: not whole numbers, one twice, `sets` has one already."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {text!r}: expected whole numbers with commas between, for example 1337,1338,1339") from None
    if twice := [seed for seed in dict.fromkeys(seeds) if seeds.count(seed) > 1]:
        raise UsageError(f"--seeds {text!r} names {twice[0]} twice: it would be the same run")
    if any(one.partition("=")[0] == "train.seed" for one in sets):
        raise UsageError("--seeds and --set train.seed name the seed twice; leave one of them out")
    return seeds


def plan(request: Request) -> Plan:
    """Reads configuration, store and split, and the run folder's last.pth if there is one. Writes nothing."""
    if request.config is None and request.dataset is None:
        raise UsageError("name a data set with --dataset, or a configuration with --config")
    sets = list(request.sets)
    if request.method:
        sets.append(f"method={request.method}")
    if request.seed is not None:
        sets.append(f"train.seed={request.seed}")
    if request.config:
        source = request.config
        name = request.dataset or load(source, sets).data.name
        store = Store(request.data_root / "prepared" / name)
    else:
        name = str(request.dataset)
        store = Store(request.data_root / "prepared" / name)
        source = default_config(store, packaged("configs"))
    named = f"data.name={name}"    # the store's folder, whatever the file calls it: evaluate looks for it
    config = load(source, [named, *sets])
    if config.data.name != name:
        raise UsageError(f"--set data.name={config.data.name} and --dataset {name} name two data sets; leave one of them out")
    published = [] if request.config else _published(config.method, store.spec.name, sets)
    if published:
        try:
            load(source, [named, *published])
        except UsageError as error:
            raise UsageError(f"{file_of(METHODS[config.method])}: published: {str(error).removeprefix('--set ')}") from None
    config = load(source, [named, *published, *sets])
    split = find(store, request.labeled, request.split)
    labeled = label_key(request.labeled or str(len(split.labeled)))
    folder = request.out or Path("runs") / f"{store.root.name}-{config.method}-{labeled.replace('%', 'pct')}"
    if request.seed is not None:
        if not folder.name:
            raise UsageError(f"--out {folder} has no name that -seed{request.seed} could follow; give the folder's own name")
        folder = folder.with_name(f"{folder.name}-seed{request.seed}")
    last = folder / "last.pth"
    resumed = checkpoints.load(last) if last.exists() else None
    if resumed:
        _same(resumed, config, split, store, folder)
    stop = config.train.steps if request.stop_after is None else request.stop_after
    if stop > config.train.steps:
        raise UsageError(f"--stop-after {stop} is beyond the run's last step; train.steps = {config.train.steps}")
    return Plan(config, split, store, folder, source, resumed, published, stop)


def start(plan: Plan) -> Run:
    """Builds the run's parts, restores them from the checkpoint if there is one, and writes the resolved configuration."""
    config = plan.config
    check_same(plan.resumed.step if plan.resumed else 0, f"run folder {plan.folder}")
    device = pick_device(config.train.device)
    precision = _precision(plan, device)
    set_up(deterministic=config.train.deterministic)
    # With the steps of today: what a method does over a run must go on as if it had been this long from the start.
    method = load_method(replace(plan.resumed, config=config)) if plan.resumed else build_method(config, plan.store.spec)
    of_file = own(config.method, method)
    method = synchronised(method.to(device))
    optimizer = GuardedOptimizer(method, config.train)
    if plan.resumed and plan.resumed.training:
        optimizer.load_state_dict(plan.resumed.training)
    data = build_data(config, plan.store, plan.split, type(method), device)
    val = plan.split.cases(plan.store, "val")
    held = ExitStack()
    if world.rank() == 0:
        with hold(plan.folder) as holding:
            for leftover in plan.folder.glob(".tmp-*"):    # of a write that a kill cut short
                leftover.unlink()
            with atomic(plan.folder / "config.yaml") as temporary:
                temporary.write_text(yaml.safe_dump(dump(config), sort_keys=False), encoding="utf-8")
            if source := METHODS.source(config.method):
                with atomic(plan.folder / f"{config.method}.py") as temporary:
                    temporary.write_bytes(source)
            held = holding.pop_all()    # for the run
    checkpoint = Checkpoint(
        step=plan.resumed.step if plan.resumed else 0,
        config=config,
        spec=plan.store.spec,
        split=plan.split,
        data=plan.store.digest,
        weights={},
        training=None,
        best=plan.resumed.best if plan.resumed else None,
        precision=short_name(precision),
        own=of_file,
        path=plan.folder / "last.pth",
    )
    return Run(checkpoint, method.train(), optimizer, data, plan.store, val, plan.stop, device, precision, held)


def hold(folder: Path) -> ExitStack:
    """Keeps other processes from training in `folder` until the stack is closed or this process ends, in whatever way.

    Raises UsageError if another one trains there. Does nothing on Windows and on disks without locks.
    """
    held = ExitStack()
    if sys.platform == "win32":
        return held
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CrkdError(f"cannot write to {folder}: {error.strerror}; give another folder with --out") from None
    held.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise UsageError(f"another process trains in {folder}; wait until it ends, or give another folder with --out") from None
    except OSError:    # no locks on this disk
        pass
    return held


def _published(method: str, dataset: str, sets: list[str]) -> list[str]:
    """The settings of the method's authors on this data set that the user does not override, as key=value."""
    own = {one.partition("=")[0] for one in sets}
    if "train.schedule" in own:
        own.add("train.milestones")    # they belong to the authors' schedule
    settings = METHODS[method].published.get(dataset, {})
    return [f"{key}={value}" for key, value in settings.items() if key not in own]


def _precision(plan: Plan, device: torch.device) -> torch.dtype:
    """The precision to train in: of a resumed run the one that it began with, unless the user names one.

    On a CPU, oneDNN's bfloat16 weight gradient of a 3-wide 3D convolution over a first axis of length 2 reads memory that it
    never wrote (torch 2.13: other values at every call, now and then NaN). A frame of 16 or 32 meets it four halvings down.
    """
    config = plan.config
    asked: str = config.train.precision
    if plan.resumed and asked == "auto":
        asked = plan.resumed.precision
    precision = pick_precision(asked, device)
    frame = config.data.frame
    if device.type == "cpu" and precision == torch.bfloat16 and frame.dims == 3 and frame.size[0] in (16, 32):
        if config.train.precision == "bf16":
            raise UsageError(
                f"bf16 on a CPU gives wrong gradients for a data.frame whose first side is {frame.size[0]}; "
                "use --set train.precision=fp32, or a first side of 48 or more"
            )
        return torch.float32
    return precision


def _same(old: Checkpoint, config: Config, split: Split, store: Store, folder: Path) -> None:
    """Raises UsageError if the run in `folder` was started with other settings than `config` and `split`, or on other data
    than `store`; CrkdError if the optimiser's state is missing.
    """
    before, now = (
        flat({**dump(c), "prepared": msgspec.to_builtins(spec)}) for c, spec in ((old.config, old.spec), (config, store.spec))
    )
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key) and key not in FREE]
    if changed:
        key = changed[0]
        what = f"{key} = {before.get(key)}, now {now.get(key)}"
    elif (old.own and old.own.sha256) != own_digest(config.method):
        what = f"method {config.method}, whose file has changed; {folder / config.method}.py is as it was"
    elif old.split != split:
        what = f"split {old.split.name}, now {split.name} with other cases"
    elif old.data != store.digest:
        what = f"the images, labels, spacings or patients in {store.root} have changed"
    elif config.train.steps < old.step:
        what = f"{old.step} steps done, now train.steps = {config.train.steps}"
    elif old.training is None:
        raise CrkdError(f"{old.path} lacks the optimiser's state, as best.pth does; give another folder with --out, or delete it")
    else:
        return
    raise UsageError(f"{folder} holds a run with other settings ({what}); give another folder with --out, or delete it")


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"steps": 5}} → {"train.steps": 5}."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
