"""The configuration: a frozen, typed tree.

An unknown key, a wrong type or a value out of range is an error that names the key's path.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from crkd_cli import renamed
from crkd_cli.config_errors import explain, field_types
from crkd_cli.errors import UsageError
from crkd_cli.text import shorten
from crkd_cli.yaml_text import load_yaml, parse_yaml

# Numbers beyond these limits can only be mistakes.
Positive = Annotated[int, msgspec.Meta(ge=1, le=10**9)]
BatchSize = Annotated[int, msgspec.Meta(ge=1, le=2**12)]
Size = Annotated[int, msgspec.Meta(ge=1, le=2**16)]  # of an axis or a layer
NonNegative = Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]
AboveZero = Annotated[float, msgspec.Meta(gt=0.0, le=1e6)]
Fraction = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Axis = Annotated[int, msgspec.Meta(ge=0, le=2)]
FolderName = Annotated[
    str,
    msgspec.Meta(pattern=r"^(?!\.{1,2}$)[^/\\\0]{1,255}$", description="a name, not a path"),
]
DeviceName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(auto|cpu(:0)?|cuda(:[0-9]{1,3})?)$", description="auto, cpu, cuda or cuda:N"
    ),
]
# Channels of the five levels of a network.
Widths = Annotated[tuple[Size, ...], msgspec.Meta(min_length=5, max_length=5)]
# By what the four downsamplings between them divide each axis: 1 or 2.
Strides = tuple[tuple[int, ...], ...]
DOWNSAMPLINGS = 4
AUTO = "auto"  # as the name of a network: chosen when a run is planned
FOREGROUND = 0.33  # share of the labeled items that are chosen to contain foreground (nnU-Net)


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of everything that is read from YAML or JSON: immutable, without unknown keys."""


class Frame(Strict, frozen=True):
    """How a case becomes network input, in training and in inference alike.

    With `resize`, the whole image (or slice) is resized to this size. With `patch`, training uses
    random crops of this size and inference a sliding window. The number of sizes is the number of
    spatial axes of the network; a case with one axis more is cut into slices along its first axis.
    """

    resize: tuple[Size, ...] | None = None
    patch: tuple[Size, ...] | None = None
    # Of the sliding window under the paper protocol; the strict protocol uses half a patch.
    stride: tuple[Size, ...] | None = None

    def __post_init__(self) -> None:
        if (self.resize is None) == (self.patch is None):
            raise ValueError("give either resize or patch")
        if len(self.size) not in (2, 3):
            raise ValueError("give two sizes (2D network) or three (3D network)")
        if any(side % 4 for side in self.size):
            sizes = list(self.size)
            raise ValueError(
                f"every size must be a multiple of 4 (better: of 16, which can be halved four "
                f"times), got {sizes}"
            )
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

    @property
    def halvings(self) -> tuple[int, ...]:
        """How often the network halves each axis: four times, or as often as the size permits."""
        return tuple(_halvings(side) for side in self.size)

    @property
    def strides(self) -> Strides:
        """By what each of the four downsamplings of the network divides each axis: 1 or 2.

        An axis that is halved less often than others keeps its size first, at the high resolutions.
        """
        most = max(self.halvings)
        by_axis = [_strides(count, most) for count in self.halvings]
        return tuple(zip(*by_axis, strict=True))


def _halvings(side: int) -> int:
    """Return how often `side` can be halved without a remainder, up to four times."""
    return max(count for count in range(DOWNSAMPLINGS + 1) if side % 2**count == 0)


def _strides(count: int, most: int) -> tuple[int, ...]:
    """Return the strides of an axis that is halved `count` times, others up to `most` times."""
    return (1,) * (most - count) + (2,) * count + (1,) * (DOWNSAMPLINGS - most)


class DataConfig(Strict, frozen=True):
    """Section `data`."""

    name: FolderName  # dataset: a folder under prepared/
    frame: Frame
    labeled_batch_size: BatchSize
    unlabeled_batch_size: BatchSize
    # published: that of the methods' authors; strong: more, for few labels.
    augment: Literal["published", "strong"] = "published"
    # The axes of the network's images along which they may be flipped; None for all.
    mirror: tuple[Axis, ...] | None = None
    # Of the labeled patches (and slices), the share that is chosen to contain foreground; None for
    # 0.33 with the strong augmentation, else 0.
    foreground: Fraction | None = None

    def __post_init__(self) -> None:
        beyond = [axis for axis in self.mirror or () if axis >= self.frame.dims]
        if beyond:
            raise ValueError(
                f"mirror names axis {beyond[0]}, but the axes of a network with "
                f"{self.frame.dims} sizes are numbered 0 to {self.frame.dims - 1}"
            )

    @property
    def foreground_share(self) -> float:
        """The share of labeled items that are chosen to contain foreground."""
        if self.foreground is not None:
            return self.foreground
        return FOREGROUND if self.augment == "strong" else 0.0

    @property
    def mirrored_axes(self) -> tuple[int, ...]:
        """The axes along which images may be flipped, in ascending order."""
        if self.mirror is None:
            return tuple(range(self.frame.dims))
        return tuple(sorted(set(self.mirror)))


class ModelConfig(Strict, frozen=True):
    """Section `model`."""

    name: str  # a file in models/networks, or `auto`
    widths: Widths = (16, 32, 64, 128, 256)


class TrainConfig(Strict, frozen=True):
    """Section `train`."""

    steps: Positive
    optimizer: Literal["sgd", "nesterov", "adamw"] = "sgd"
    lr: AboveZero = 0.01
    momentum: Fraction = 0.9  # β₁ of AdamW
    weight_decay: NonNegative = 1e-4
    # poly: lr · (1 − t/T)^lr_power; step: a tenth from every milestone on.
    lr_schedule: Literal["poly", "step", "constant"] = "poly"
    lr_power: NonNegative = 0.9
    # T as a share of the run; above 1 the run ends before the learning rate is 0.
    lr_horizon: Annotated[float, msgspec.Meta(ge=1.0, le=1e6)] = 1.0
    lr_milestones: tuple[Fraction, ...] = ()  # of schedule step, as shares of the run
    eval_every: Positive = 500  # steps between validations
    log_every: Positive = 50  # steps between log lines: the only host synchronization
    save_minutes: NonNegative = 10.0  # minutes between checkpoints
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 1337
    device: DeviceName = "auto"  # auto, cpu, cuda, cuda:1 …
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
        tree = load_yaml(path)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"cannot read the configuration {path}: {reason}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from None
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
    _check_names(tree, path, overrides)
    config: Config = parse(tree, Config, str(path), overrides)
    if params_of is not None:
        for name, settings in config.methods.items():
            parse(settings, params_of(name), str(path), overrides, f"methods.{name}")
    return config


def check_overrides(overrides: Sequence[str]) -> None:
    """Check each of `overrides` alone: its key, and the type and range of its value.

    This needs no file and no method, so that a mistake is reported at once. `build_config` checks
    the settings of methods, and whether all settings fit together. Raises UsageError.
    """
    for override in overrides:
        tree: dict[str, Any] = {}
        _apply_override(tree, override, Path())
        _check_names(tree, Path(), [override])
        keys = override.partition("=")[0].split(".")
        parse(tree, _only(Config, keys), "", [override])


def parse(
    tree: Any, kind: type[Any], where: str, overrides: Sequence[str] = (), section: str = ""
) -> Any:
    """Convert `tree` (plain dicts and lists), found at `section`, to the Strict type `kind`.

    Raises UsageError that names the key's path, and the last of `overrides` that set it or else
    `where`.
    """
    try:
        # Not strict, because PyYAML reads 1e-4 as text.
        value = msgspec.convert(tree, kind, strict=False)
    except msgspec.ValidationError as error:
        path, problem = explain(str(error), kind, section)
        raise UsageError(f"{_origin(path, where, overrides)}: {problem}") from None
    for path in _not_finite(msgspec.to_builtins(value), section):
        raise UsageError(f"{_origin(path, where, overrides)}: {path}: expected a finite number")
    return value


def dump(config: Strict) -> dict[str, Any]:
    """Return a configuration as plain dicts and lists; `parse` reads it back."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    return tree


def _not_finite(tree: Any, path: str) -> Iterator[str]:
    """Yield the paths of all numbers that are infinite or NaN."""
    if isinstance(tree, float) and not math.isfinite(tree):
        yield path
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _not_finite(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _not_finite(value, f"{path}[{index}]")


def _only(kind: type[Any], keys: Sequence[str]) -> type[Any]:
    """Return the section `kind` with just the field at `keys`, and without rules for the others.

    It is `kind` itself if there is no such field.
    """
    name, *inner = keys
    field = field_types(kind).get(name)
    if field is None:
        return kind
    if inner and isinstance(field, type) and issubclass(field, Strict):
        field = _only(field, inner)
    return msgspec.defstruct(kind.__name__, [(name, field)], forbid_unknown_fields=True)


def _check_names(tree: dict[str, Any], path: Path, overrides: Sequence[str]) -> None:
    """Raise UsageError, with the new name, if there is a key that was renamed."""
    for old in renamed.old_keys(tree):
        where = _origin(old, str(path), overrides)
        raise UsageError(f"{where}: {old} is now called {renamed.KEYS[old]}")


def _apply_override(tree: dict[str, Any], override: str, file: Path) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(
            f"--set {shorten(override)!r}: expected key.path=value, for example train.steps=2000"
        )
    *parents, leaf = key.split(".")
    node = tree
    for depth, parent in enumerate(parents, start=1):
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            path = ".".join(parents[:depth])
            raise UsageError(
                f"{file}: {path} is {shorten(repr(child))}, not a section; cannot set "
                f"{shorten(override)}"
            )
        node = child
    try:
        node[leaf] = parse_yaml(text)
    except ValueError as error:
        raise UsageError(
            f"--set {shorten(override)!r}: the value is not valid YAML: {error}"
        ) from None


def _origin(path: str, where: str, overrides: Sequence[str]) -> str:
    """Say where the key at `path` was set: by the last override that touches it, or in `where`."""
    at = path.partition("[")[0] + "."
    for override in reversed(overrides):
        key = override.partition("=")[0] + "."
        if key.startswith(at) or at.startswith(key):
            return f"--set {shorten(override)}"
    return where
