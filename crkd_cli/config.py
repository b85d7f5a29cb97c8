"""The configuration: a frozen, typed tree. An unknown key, a wrong type or a value out of range names its path."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import yaml

from crkd_cli.errors import UsageError, did_you_mean

Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0.0)]
Fraction = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
WORDS = {    # for msgspec's types
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "object": "a section",
    "array": "a list", "null": "nothing",
}  # fmt: skip


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of everything that is read from YAML or JSON: immutable, no unknown keys."""


class Frame(Strict, frozen=True):
    """How a case becomes network input, in training and in inference alike.

    `resize`: the whole image (or slice) is resized to this size. `patch`: crops of this size, a sliding window in
    inference. The number of sizes is the network's number of spatial axes; a case with one axis more is cut into
    slices along its first axis.
    """

    resize: tuple[Positive, ...] | None = None
    patch: tuple[Positive, ...] | None = None
    stride: tuple[Positive, ...] | None = None    # of the sliding window in the paper protocol; strict uses half a patch

    def __post_init__(self) -> None:
        if (self.resize is None) == (self.patch is None):
            raise ValueError("give either resize or patch")
        if len(self.size) not in (2, 3):
            raise ValueError("give two sizes (2D network) or three (3D network)")
        if any(side % 16 for side in self.size):
            raise ValueError(f"every size must be a multiple of 16 (four halvings), got {list(self.size)}")
        if self.stride is not None and (self.patch is None or len(self.stride) != len(self.size)):
            raise ValueError("stride belongs to patch and needs as many sizes")
        if self.stride is not None and any(step > side for step, side in zip(self.stride, self.size, strict=True)):
            raise ValueError(f"stride {list(self.stride)} is larger than the patch: what lies between two would have no answer")

    @property
    def size(self) -> tuple[int, ...]:
        return self.resize or self.patch or ()

    @property
    def dims(self) -> int:
        """Spatial axes of the network: 2 or 3."""
        return len(self.size)


class Data(Strict, frozen=True):
    name: str                                     # data set: a folder under prepared/
    frame: Frame
    labeled: Positive                             # labelled images in a batch
    unlabeled: Positive                           # unlabelled images in a batch


class Model(Strict, frozen=True):
    name: str                                     # a file in models/networks
    widths: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=5, max_length=5)] = (16, 32, 64, 128, 256)


class Train(Strict, frozen=True):
    steps: Positive
    optimizer: Literal["sgd", "nesterov", "adamw"] = "sgd"
    lr: Annotated[float, msgspec.Meta(gt=0.0)] = 0.01
    momentum: Fraction = 0.9                      # β₁ of AdamW
    weight_decay: NonNegative = 1e-4
    schedule: Literal["poly", "step", "constant"] = "poly"    # poly: lr·(1 − t/T)^power; step: lr/10 from every milestone on
    power: NonNegative = 0.9
    horizon: Annotated[float, msgspec.Meta(ge=1.0)] = 1.0    # T as a share of the run: above 1 it ends before lr is 0
    milestones: tuple[Fraction, ...] = ()         # of schedule step, as shares of the run
    eval_every: Positive = 500                    # steps between validations, where the split has validation cases
    log_every: Positive = 50                      # steps between log lines: the only host synchronisation
    save_minutes: NonNegative = 10.0              # minutes between checkpoints
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 1337
    device: str = "auto"                          # auto, cpu, cuda, cuda:1 …
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    predictor: Literal["renewed", "trained"] = "renewed"    # batch norm's statistics: of unlabelled images, or as trained
    deterministic: bool = False                   # on a GPU: bit-exact resume, slower kernels
    tensorboard: bool = False                     # event files in the run folder (extra `tensorboard`)

    def __post_init__(self) -> None:
        if self.optimizer == "nesterov" and not self.momentum:
            raise ValueError("optimizer nesterov needs a momentum above 0")
        if self.optimizer == "adamw" and self.momentum == 1.0:
            raise ValueError("optimizer adamw needs a momentum below 1")
        if self.schedule == "step" and not self.milestones:
            raise ValueError("schedule step needs milestones, for example [0.5, 0.75]")
        if self.schedule != "step" and self.milestones:
            raise ValueError(f"milestones belong to schedule step, not to {self.schedule}")


class Config(Strict, frozen=True):
    """One complete run."""

    data: Data
    model: Model
    train: Train
    method: str = "crkd"
    methods: dict[str, dict[str, Any]] = {}       # what differs from a method's own defaults, by method


def load(path: Path, overrides: list[str] | None = None) -> Config:
    """The configuration in the YAML file `path` with `key.path=value` overrides. Raises UsageError."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the configuration {path}: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path} is no configuration: expected sections such as data, model and train")
    for override in overrides or []:
        _override(tree, override, path)
    config: Config = parse(tree, Config, str(path), overrides or ())
    return config


def parse(tree: Any, kind: type[Any], where: str, overrides: Sequence[str] = ()) -> Any:
    """`tree` (plain dicts and lists) as a Strict type.

    Raises UsageError that names the key's path, and the last of `overrides` that set it, else `where`.
    """
    try:
        return msgspec.convert(tree, kind, strict=False)    # not strict: PyYAML reads 1e-4 as text
    except msgspec.ValidationError as error:
        path, what = _explain(str(error), kind)
        blamed = [override for override in overrides if _sets(override, path)]
        raise UsageError(f"{f'--set {blamed[-1]}' if blamed else where}: {what}") from None


def dump(config: "Strict") -> dict[str, Any]:
    """A configuration as plain dicts and lists; `parse` reads it back."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    return tree


def _override(tree: dict[str, Any], override: str, file: Path) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {override!r}: expected key.path=value, for example train.steps=2000")
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UsageError(f"{file}: {parent} is {child!r}, not a section, so that {override} cannot be set in it")
        node = child
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"--set {override!r}: the value is not valid YAML") from None


def _sets(override: str, path: str) -> bool:
    """Whether `override` sets the key at `path`, its section, or a key in it."""
    key, at = override.partition("=")[0] + ".", path.partition("[")[0] + "."
    return key.startswith(at) or at.startswith(key)


def _explain(message: str, kind: type[Any]) -> tuple[str, str]:
    """The path of the key, and msgspec's message in the project's words, with the nearest key for an unknown one."""
    what, _, at = message.partition(" - at `")
    path = at.rstrip("`").removeprefix("$").lstrip(".")
    if "Invalid enum value" in what:
        section, _, leaf = path.rpartition(".")
        wrong, allowed = what.split("'")[1], get_args(_fields(kind, section)[leaf])
        return path, f"{path} is {wrong!r}; {did_you_mean(wrong, allowed)}"
    if not what.startswith("Object "):    # … contains unknown field, … missing required field
        what = re.sub(r"`([a-z |]+)`", lambda types: " or ".join(WORDS.get(one, one) for one in types[1].split(" | ")), what)
        what = what.replace("Expected", "expected")
        return path, f"{path}: {what}" if path else what
    wrong = what.split("`")[1]
    full = f"{path}.{wrong}" if path else wrong
    if "missing" in what:
        return full, f"{full} is missing"
    return full, f"unknown key {full}; {did_you_mean(wrong, _fields(kind, path))}"


def _fields(kind: Any, path: str) -> dict[str, Any]:
    """The fields of `kind`'s section at `path`, with their types."""
    for name in filter(None, path.split(".")):
        kind = _fields(kind, "")[name]
    return {field.name: field.type for field in msgspec.structs.fields(kind)}
