"""The configuration: a frozen, typed tree.

An unknown key, a wrong type or a value out of range is an error that names the key's path.
"""

import copy
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import yaml

from crkd_cli import renamed
from crkd_cli.errors import UsageError, did_you_mean

Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0.0)]
Fraction = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
# Channels of the five levels of a network.
Widths = Annotated[tuple[Positive, ...], msgspec.Meta(min_length=5, max_length=5)]

# How error messages name msgspec's types.
_TYPE_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "object": "a section",
    "array": "a list",
    "null": "nothing",
}


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of everything that is read from YAML or JSON: immutable, without unknown keys."""


class Frame(Strict, frozen=True):
    """How a case becomes network input, in training and in inference alike.

    With `resize`, the whole image (or slice) is resized to this size. With `patch`, training uses
    random crops of this size and inference a sliding window. The number of sizes is the number of
    spatial axes of the network; a case with one axis more is cut into slices along its first axis.
    """

    resize: tuple[Positive, ...] | None = None
    patch: tuple[Positive, ...] | None = None
    # Of the sliding window under the paper protocol; the strict protocol uses half a patch.
    stride: tuple[Positive, ...] | None = None

    def __post_init__(self) -> None:
        if (self.resize is None) == (self.patch is None):
            raise ValueError("give either resize or patch")
        if len(self.size) not in (2, 3):
            raise ValueError("give two sizes (2D network) or three (3D network)")
        if any(side % 16 for side in self.size):
            sizes = list(self.size)
            raise ValueError(f"every size must be a multiple of 16 (four halvings), got {sizes}")
        if self.stride is not None:
            self._check_stride(self.stride)

    def _check_stride(self, stride: tuple[int, ...]) -> None:
        if self.patch is None or len(stride) != len(self.size):
            raise ValueError("stride belongs to patch and needs as many sizes")
        if any(step > side for step, side in zip(stride, self.size, strict=True)):
            raise ValueError(f"stride {list(stride)} is larger than the patch and would leave gaps")

    @property
    def size(self) -> tuple[int, ...]:
        """The size of the network's input, [*S]."""
        return self.resize or self.patch or ()

    @property
    def dims(self) -> int:
        """Number of spatial axes of the network: 2 or 3."""
        return len(self.size)


class DataConfig(Strict, frozen=True):
    """Section `data`."""

    name: str  # dataset: a folder under prepared/
    frame: Frame
    labeled_batch_size: Positive
    unlabeled_batch_size: Positive


class ModelConfig(Strict, frozen=True):
    """Section `model`."""

    name: str  # a file in models/networks
    widths: Widths = (16, 32, 64, 128, 256)


class TrainConfig(Strict, frozen=True):
    """Section `train`."""

    steps: Positive
    optimizer: Literal["sgd", "nesterov", "adamw"] = "sgd"
    lr: Annotated[float, msgspec.Meta(gt=0.0)] = 0.01
    momentum: Fraction = 0.9  # β₁ of AdamW
    weight_decay: NonNegative = 1e-4
    # poly: lr · (1 − t/T)^lr_power; step: a tenth from every milestone on.
    lr_schedule: Literal["poly", "step", "constant"] = "poly"
    lr_power: NonNegative = 0.9
    # T as a share of the run; above 1 the run ends before the learning rate is 0.
    lr_horizon: Annotated[float, msgspec.Meta(ge=1.0)] = 1.0
    lr_milestones: tuple[Fraction, ...] = ()  # of schedule step, as shares of the run
    eval_every: Positive = 500  # steps between validations
    log_every: Positive = 50  # steps between log lines: the only host synchronization
    save_minutes: NonNegative = 10.0  # minutes between checkpoints
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 1337
    device: str = "auto"  # auto, cpu, cuda, cuda:1 …
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    # Recompute the predictor's batch norm statistics from unlabeled training images.
    recalibrate_batch_norm: bool = True
    graphs: bool = True  # on one GPU: run steps as CUDA graphs, where the method allows it
    deterministic: bool = False  # on a GPU: bit-exact resume, slower kernels
    tensorboard: bool = False  # event files in the run folder (extra `tensorboard`)

    def __post_init__(self) -> None:
        if self.optimizer == "nesterov" and not self.momentum:
            raise ValueError("optimizer nesterov needs a momentum above 0")
        if self.optimizer == "adamw" and self.momentum == 1.0:
            raise ValueError("optimizer adamw needs a momentum below 1")
        if self.lr_schedule == "step" and not self.lr_milestones:
            raise ValueError("lr_schedule step needs lr_milestones, for example [0.5, 0.75]")
        if self.lr_schedule != "step" and self.lr_milestones:
            raise ValueError(f"lr_milestones need lr_schedule step, not {self.lr_schedule}")


class Config(Strict, frozen=True):
    """One complete run."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    method: str = "crkd"
    methods: dict[str, dict[str, Any]] = {}  # what differs from a method's own defaults, by method


# The type of a method's settings, by the method's name.
ParamsOf = Callable[[str], type[Strict]]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file as plain dicts and lists. Raises UsageError."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the configuration {path}: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UsageError(
            f"{path} is not a configuration: expected sections such as data, model and train"
        )
    return tree


def build_config(
    tree: dict[str, Any],
    path: Path,
    overrides: Sequence[str] = (),
    params_of: ParamsOf | None = None,
) -> Config:
    """Turn the content `tree` of the file `path` into a Config with `overrides` applied.

    With `params_of`, the settings of every method in `methods` are checked too. Raises UsageError
    that names the key and the override or file it comes from.
    """
    tree = copy.deepcopy(tree)
    for override in overrides:
        _apply_override(tree, override, path)
    for old in renamed.old_keys(tree):
        where = _origin(old, str(path), overrides)
        raise UsageError(f"{where}: {old} is now called {renamed.KEYS[old]}")
    config: Config = parse(tree, Config, str(path), overrides)
    if params_of is not None:
        for name, settings in config.methods.items():
            parse(settings, params_of(name), str(path), overrides, f"methods.{name}")
    return config


def parse(
    tree: Any, kind: type[Any], where: str, overrides: Sequence[str] = (), section: str = ""
) -> Any:
    """Convert `tree` (plain dicts and lists), found at `section`, to the Strict type `kind`.

    Raises UsageError that names the key's path, and the last of `overrides` that set it or else
    `where`.
    """
    try:
        # Not strict, because PyYAML reads 1e-4 as text.
        return msgspec.convert(tree, kind, strict=False)
    except msgspec.ValidationError as error:
        path, problem = _explain(str(error), kind, section)
        raise UsageError(f"{_origin(path, where, overrides)}: {problem}") from None


def dump(config: Strict) -> dict[str, Any]:
    """Return a configuration as plain dicts and lists; `parse` reads it back."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    return tree


def _apply_override(tree: dict[str, Any], override: str, file: Path) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(
            f"--set {override!r}: expected key.path=value, for example train.steps=2000"
        )
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UsageError(f"{file}: {parent} is {child!r}, not a section; cannot set {override}")
        node = child
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"--set {override!r}: the value is not valid YAML") from None


def _origin(path: str, where: str, overrides: Sequence[str]) -> str:
    """Say where the key at `path` was set: by the last override that touches it, or in `where`."""
    at = path.partition("[")[0] + "."
    for override in reversed(overrides):
        key = override.partition("=")[0] + "."
        if key.startswith(at) or at.startswith(key):
            return f"--set {override}"
    return where


def _explain(message: str, kind: type[Any], section: str) -> tuple[str, str]:
    """Return the key's path and msgspec's `message` in our words, with the nearest valid key."""
    problem, _, at = message.partition(" - at `")
    inner = at.rstrip("`").removeprefix("$").lstrip(".")
    path = ".".join(filter(None, (section, inner)))
    if "Invalid enum value" in problem:
        parent, _, leaf = inner.rpartition(".")
        wrong, allowed = problem.split("'")[1], _choices(_field_types(kind, parent)[leaf])
        return path, f"{path} is {wrong!r}; {did_you_mean(wrong, allowed)}"
    if not problem.startswith("Object "):  # neither an unknown nor a missing field
        problem = re.sub(r"`([a-z |]+)`", _name_types, problem).replace("Expected", "expected")
        return path, f"{path}: {problem}" if path else problem
    key = problem.split("`")[1]
    full = f"{path}.{key}" if path else key
    if "missing" in problem:
        return full, f"{full} is missing"
    return full, f"unknown key {full}; {did_you_mean(key, _field_types(kind, inner))}"


def _name_types(match: re.Match[str]) -> str:
    return " or ".join(_TYPE_NAMES.get(name, name) for name in match[1].split(" | "))


def _field_types(kind: Any, path: str) -> dict[str, Any]:
    """Return the fields of `kind`'s section at `path` with their types."""
    for name in filter(None, path.split(".")):
        field, bracket, _ = name.partition("[")
        kind = _field_types(kind, "")[field]
        if bracket:  # a list of sections
            kind = _section_in(kind)
    return {field.name: field.type for field in msgspec.structs.fields(kind)}


def _section_in(kind: Any) -> Any:
    """Return the Strict type in a type such as tuple[Channel, ...] | None."""
    if isinstance(kind, type) and issubclass(kind, Strict):
        return kind
    return next(filter(None, map(_section_in, get_args(kind))), None)


def _choices(kind: Any) -> list[str]:
    """Return the values of a Literal, which may be optional."""
    parts = get_args(kind)
    literals = [get_args(part) for part in parts if get_args(part)] or [parts]
    return [value for literal in literals for value in literal if isinstance(value, str)]
