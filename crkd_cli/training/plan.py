"""From the command line to a plan: configuration, split, run folder, state to resume from."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from crkd_cli.config import Config, build_config, dump, read_yaml
from crkd_cli.data.changes import describe_changes, describe_other_kind
from crkd_cli.data.folds import find_folds
from crkd_cli.data.labels import describe_difference
from crkd_cli.data.plan import Plan as DataPlan
from crkd_cli.data.splits import Split, find_split, label_key
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.methods import METHODS
from crkd_cli.paths import packaged_folder
from crkd_cli.runtime.build import user_method_digest
from crkd_cli.runtime.checkpoint import Checkpoint, load_checkpoint
from crkd_cli.runtime.run_folder import find_checkpoints, fold_folder
from crkd_cli.runtime.user_method import source_file
from crkd_cli.text import shorten
from crkd_cli.training.network_choice import choose_network
from crkd_cli.training.planned import follow

# Settings that may change when a run is resumed.
MAY_CHANGE = (
    "train.steps",
    "train.device",
    "train.log_every",
    "train.eval_every",
    "train.save_minutes",
    "train.graphs",
    "train.tensorboard",
    "train.recalibrate_batch_norm",
)


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
    seed: int | None = None  # one of --seeds; the folder's name then ends in it
    fold: int | None = None  # of a cross-validation, from 1 on; a subfolder of the run folder
    stop_after: int | None = None  # steps after which to stop early

    def overrides(self) -> list[str]:
        """All settings of the command line as key=value."""
        overrides = list(self.sets)
        if self.method:
            overrides.append(f"method={self.method}")
        if self.seed is not None:
            overrides.append(f"train.seed={self.seed}")
        return overrides


@dataclass(frozen=True)
class Plan:
    """A request made definite."""

    config: Config
    split: Split
    store: Store
    folder: Path
    source: Path  # the configuration file
    resumed: Checkpoint | None
    author_settings: list[str]  # the authors' settings that were applied, key=value
    stop: int  # the step after which training stops: the last one, or that of --stop-after
    data_plan: DataPlan | None = None  # of the store, if the configuration follows it
    network_reason: str | None = None  # why this network, if the configuration leaves it open

    @property
    def finished(self) -> bool:
        """Whether no step is left to do before `stop`."""
        return self.resumed is not None and self.resumed.step >= self.stop


def parse_seeds(text: str, sets: list[str]) -> list[int]:
    """Parse --seeds ("1337,1338").

    Raises UsageError if a seed is not a whole number or is given twice, or if `sets` has one too.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--seeds {shorten(text)!r}: expected whole numbers separated by commas, for example "
            "1337,1338,1339"
        ) from None
    seed, times = Counter(seeds).most_common(1)[0]
    if times > 1:
        raise UsageError(f"--seeds {shorten(text)!r} names {seed} twice: it would be the same run")
    if any(override.partition("=")[0] == "train.seed" for override in sets):
        raise UsageError("--seeds and --set train.seed both set the seed; give one of them")
    return seeds


def all_folds(request: Request) -> list[Request]:
    """Return a request for each fold. Raises UsageError if no folds were made."""
    store, _, _ = _open_store(request)
    folds = find_folds(store, request.labeled, request.split)
    return [replace(request, fold=number) for number in range(1, len(folds.folds) + 1)]


def plan(request: Request) -> Plan:
    """Read the configuration, the store, the split and last.pth of the run folder, if it exists.

    Writes nothing. Raises UsageError or CrkdError.
    """
    store, source, tree = _open_store(request)
    config, author_settings = _resolve_config(request, store, source, tree)
    split, n_labeled = _choose_split(request, store)
    folder = _run_folder(request, store, config, n_labeled)
    last = folder / "last.pth"
    resumed = load_checkpoint(last) if last.exists() else None
    so_far = resumed.config if resumed else None
    config, network_reason = choose_network(config, store.spec, so_far)
    if resumed:
        _check_resumable(resumed, config, split, store, request)
    stop = config.train.steps if request.stop_after is None else request.stop_after
    if stop > config.train.steps:
        raise UsageError(
            f"--stop-after {stop} is beyond the run's last step; train.steps = {config.train.steps}"
        )
    followed = store.spec.plan if request.config is None else None
    return Plan(
        config=config,
        split=split,
        store=store,
        folder=folder,
        source=source,
        resumed=resumed,
        author_settings=author_settings,
        stop=stop,
        data_plan=followed,
        network_reason=network_reason,
    )


def default_config(store: Store) -> Path:
    """Return the packaged configuration of the store's dataset, else that for custom data."""
    packaged = packaged_folder("configs")
    by_name = packaged / f"{store.spec.name}.yaml"
    if by_name.is_file():
        return by_name
    planned = store.spec.plan
    dims = store.spec.dims if planned is None else planned.frame.dims
    return packaged / f"custom{dims}d.yaml"


def _open_store(request: Request) -> tuple[Store, Path, dict[str, Any]]:
    """Open the store and read the configuration file: (store, file, content of the file)."""
    prepared = request.data_root / "prepared"
    if request.config is None:
        if request.dataset is None:
            raise UsageError("name a dataset with --dataset, or a configuration with --config")
        store = Store(prepared / request.dataset)
        source = default_config(store)
        tree = read_yaml(source)
        return store, source, follow(tree, store.spec.plan) if store.spec.plan else tree
    tree = read_yaml(request.config)
    named = request.dataset
    if named is None:
        named = build_config(tree, request.config, request.overrides()).data.name
    return Store(prepared / named), request.config, tree


def _choose_split(request: Request, store: Store) -> tuple[Split, int]:
    """Return the split, and how many labels the run trains with; if it is a fold, at most."""
    if request.fold is None:
        split = find_split(store, request.labeled, request.split)
        return split, len(split.labeled)
    folds = find_folds(store, request.labeled, request.split)
    if not 1 <= request.fold <= len(folds.folds):
        raise UsageError(f"--fold {request.fold}: {folds.name} has folds 1 to {len(folds.folds)}")
    return folds.split(request.fold), max(len(fold.labeled) for fold in folds.folds)


def _resolve_config(
    request: Request, store: Store, source: Path, tree: dict[str, Any]
) -> tuple[Config, list[str]]:
    """Apply the authors' settings and the command line: (configuration, authors' settings)."""
    # The store's folder, which `crkd evaluate` looks for; in quotes, as it may look like a number.
    named = f"data.name={json.dumps(store.root.name, ensure_ascii=False)}"
    overrides = request.overrides()
    config = build_config(tree, source, [named, *overrides])
    if config.data.name != store.root.name:
        raise UsageError(
            f"--set data.name={config.data.name} and --dataset {store.root.name} name two "
            "datasets; give one of them"
        )
    author_settings: list[str] = []
    if request.config is None:
        author_settings = _author_settings(config.method, store.spec.name, overrides)
    if author_settings:
        _check_author_settings(config.method, tree, source, [named, *author_settings])
    all_overrides = [named, *author_settings, *overrides]
    return build_config(tree, source, all_overrides, _params_of), author_settings


def _params_of(method: str) -> type[Any]:
    return METHODS[method].Params


def _author_settings(method: str, dataset: str, overrides: list[str]) -> list[str]:
    """List the authors' settings on this dataset that the user does not override, as key=value."""
    set_by_user = {override.partition("=")[0] for override in overrides}
    if "train.lr_schedule" in set_by_user:
        set_by_user.add("train.lr_milestones")  # they belong to the authors' schedule
    settings = METHODS[method].author_settings.get(dataset, {})
    return [f"{key}={value}" for key, value in settings.items() if key not in set_by_user]


def _check_author_settings(
    method: str, tree: dict[str, Any], source: Path, overrides: list[str]
) -> None:
    """Blame a wrong setting of the authors on the method's file. Raises UsageError."""
    try:
        build_config(tree, source, overrides, _params_of)
    except UsageError as error:
        file = source_file(METHODS[method])
        problem = str(error).removeprefix("--set ")
        raise UsageError(f"{file}: author_settings: {problem}") from None


def _run_folder(request: Request, store: Store, config: Config, n_labeled: int) -> Path:
    labeled = label_key(request.labeled or str(n_labeled)).replace("%", "pct")
    folds = "" if request.fold is None else "-folds"
    folder = request.out or Path("runs") / f"{store.root.name}-{config.method}-{labeled}{folds}"
    if request.seed is not None:
        if not folder.name:
            raise UsageError(
                f"--out {folder} has no name to append -seed{request.seed} to; name the folder "
                "itself"
            )
        folder = folder.with_name(f"{folder.name}-seed{request.seed}")
    if request.fold is None:
        return folder
    if (folder / "last.pth").exists():
        raise UsageError(
            f"{folder} holds a run without folds; give another folder with --out, or delete it"
        )
    return fold_folder(folder, request.fold)


def _check_resumable(
    old: Checkpoint, config: Config, split: Split, store: Store, request: Request
) -> None:
    """Raise UsageError if the run of `old` was started with other settings or other data.

    Raises CrkdError if its checkpoint lacks the optimizer's state.
    """
    folder = old.path.parent
    difference = _difference(old, config, split, store, folder)
    if difference:
        raise UsageError(
            f"{folder} holds a run with other settings ({difference}); give another folder with "
            f"--out {_free_folder(folder, request)}, or delete it"
        )
    if old.training is None:
        raise CrkdError(
            f"{old.path} lacks the optimizer's state, as best.pth does; give another folder with "
            "--out, or delete it"
        )


def _free_folder(folder: Path, request: Request) -> Path:
    """Return an --out for another run than that in `folder`: with -2 or a higher number.

    Without the parts that seeds and folds add to --out.
    """
    if request.fold is not None:
        folder = folder.parent
    if request.seed is not None:
        folder = folder.with_name(folder.name.removesuffix(f"-seed{request.seed}"))
    names = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    # The second condition: it has no seeds either.
    return next(free for free in names if not free.exists() and find_checkpoints(free) == [free])


def _difference(
    old: Checkpoint, config: Config, split: Split, store: Store, folder: Path
) -> str | None:
    """Describe the first difference that forbids resuming `old`; None if there is none."""
    if old.spec.classes != store.spec.classes:
        return describe_difference(old.spec.classes, store.spec.classes)
    if difference := describe_other_kind(old.spec, store.spec):
        return difference
    before = flatten_keys({**dump(old.config), "prepared": msgspec.to_builtins(old.spec)})
    now = flatten_keys({**dump(config), "prepared": msgspec.to_builtins(store.spec)})
    for key in sorted(before | now):
        if before.get(key) != now.get(key) and key not in MAY_CHANGE:
            return f"{key} = {before.get(key)}, now {now.get(key)}"
    if (old.user_method and old.user_method.sha256) != user_method_digest(config.method):
        kept = folder / f"{config.method}.py"
        return f"method {config.method}, whose file has changed; {kept} is as it was"
    if old.split != split:
        return f"split {old.split.title}, now {split.title} with other cases"
    if changes := describe_changes(old.data, store):
        return f"{store.root} has changed: {changes}"
    if config.train.steps < old.step:
        return f"{old.step} steps done, now train.steps = {config.train.steps}"
    return None


def flatten_keys(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn {"train": {"steps": 5}} into {"train.steps": 5}."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flatten_keys(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
