"""Checkpoints: tensors and plain types only, written atomically and loaded without running code.

A checkpoint holds no random generator states: every draw of a run is seeded by (seed, step) or
(seed, item), see `step_seed` and data/stream.py, so the step alone determines how a run continues.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from zipfile import ZIP_STORED, ZipFile

import msgspec
import torch
from torch import Tensor

from crkd_cli import __version__
from crkd_cli.config import Config, Strict, dump
from crkd_cli.data.changes import Fingerprints
from crkd_cli.data.ranges import DataRanges
from crkd_cli.data.splits import Split
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError
from crkd_cli.paths import atomic_write
from crkd_cli.runtime.class_rule import ClassRule
from crkd_cli.runtime.run_folder import result_checkpoint

FORMAT = "crkd checkpoint 7"
EARLIER_FORMATS = tuple(f"crkd checkpoint {number}" for number in range(1, 7))
_ADVICE = "give a best.pth or last.pth that crkd train wrote"


class UserMethod(Strict, frozen=True):
    """A method from a user's own file. Only `crkd train --method FILE` runs the file."""

    sha256: str  # of the file
    # The name of the predicting network in the method; it runs without the file.
    predictor: str


class _Best(Strict, frozen=True):
    """The step and the score of the best validation."""

    step: int
    dice: float


class _Facts(msgspec.Struct, frozen=True):
    """What a checkpoint file contains besides tensors."""

    step: Annotated[int, msgspec.Meta(ge=0)]
    config: Config
    spec: DatasetSpec
    split: Split
    data: dict[str, tuple[str, str, str, str]]
    training: dict[str, Any] | None
    best: _Best | None
    precision: Literal["bf16", "fp32"]
    user_method: UserMethod | None
    code_version: str
    # Files of earlier versions have neither.
    postprocessing: tuple[ClassRule, ...] = ()
    ranges: DataRanges | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run: all that evaluation and prediction need, and what resuming needs."""

    step: int  # batches trained on
    config: Config
    spec: DatasetSpec
    split: Split
    data: Fingerprints  # of the cases of the store that the run was trained on
    weights: dict[str, Tensor]  # the method's state
    # For resuming: optimizer state, counters, the metrics of a finished run. None in best.pth,
    # unless the method restores it during training.
    training: dict[str, Any] | None
    best: dict[str, Any] | None  # step and score of the best validation so far
    # Recalibrated batch norm statistics of the predictor; None: predict with those in `weights`.
    statistics: dict[str, Tensor] | None = None
    precision: str = "fp32"  # bf16 or fp32; a resumed run keeps it
    user_method: UserMethod | None = None  # None for an installed method
    code_version: str = __version__
    # A rule per foreground class that `crkd postprocess` has chosen, or none.
    postprocessing: tuple[ClassRule, ...] = ()
    ranges: DataRanges | None = None  # of the training cases; None: not known
    path: Path = Path()


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write `checkpoint` to `path`; a crash leaves either the old file or the new one.

    Raises OSError if the disk is full.
    """
    content = {
        "format": FORMAT,
        "step": checkpoint.step,
        "config": dump(checkpoint.config),
        "spec": msgspec.to_builtins(checkpoint.spec),
        "split": msgspec.to_builtins(checkpoint.split),
        "data": msgspec.to_builtins(checkpoint.data),
        "weights": checkpoint.weights,
        "training": checkpoint.training,
        "best": checkpoint.best,
        "statistics": checkpoint.statistics,
        "precision": checkpoint.precision,
        "user_method": msgspec.to_builtins(checkpoint.user_method),
        "code_version": checkpoint.code_version,
        "postprocessing": msgspec.to_builtins(checkpoint.postprocessing),
        "ranges": msgspec.to_builtins(checkpoint.ranges),
    }
    with atomic_write(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # how torch's own writer reports a full disk
            raise OSError(f"{error}".splitlines()[0]) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Load the checkpoint `path`, or that of the run folder `path`, onto the CPU.

    In a run folder it is best.pth, or else last.pth. Raises CrkdError for any other file, and never
    runs code from it.
    """
    if path.is_dir() and result_checkpoint(path).is_file():
        path = result_checkpoint(path)
    if not path.is_file():
        neighbor = result_checkpoint(path.parent)
        advice = f"there is {neighbor}" if neighbor.is_file() else _ADVICE
        raise CrkdError(f"there is no checkpoint {path}; {advice}")
    content = _read(path)
    try:
        return _parse(content, path)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CrkdError(f"{path} is a damaged checkpoint ({reason}); {_ADVICE}") from None


def _read(path: Path) -> dict[str, Any]:
    """Read the content of a checkpoint file of a format that this version knows."""
    try:
        _verify(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception:  # damaged and foreign files fail in many ways, which all mean the same
        raise CrkdError(
            f"{path} is not a checkpoint, or it is damaged or unsafe to load; {_ADVICE}"
        ) from None
    tree: dict[str, Any] = content if isinstance(content, dict) else {}
    found = tree.get("format")
    if found in EARLIER_FORMATS:
        raise CrkdError(
            f"{path} is from an earlier version of crkd, before stores had a plan; "
            "prepare the dataset and train again"
        )
    if found != FORMAT:
        raise CrkdError(f"{path} is not a checkpoint of this version of crkd; {_ADVICE}")
    return tree


def _verify(path: Path) -> None:
    """Raise an exception unless every part of the file has its checksum.

    A checkpoint is a ZIP archive; torch writes CRC-32 checksums but does not verify them.
    """
    with ZipFile(path) as archive:
        parts = archive.infolist()
        # A compressed part could expand to any size.
        if any(part.compress_type != ZIP_STORED for part in parts):
            raise ValueError("a part is compressed")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} differs")


def _parse(content: dict[str, Any], path: Path) -> Checkpoint:
    facts: _Facts = msgspec.convert(content, _Facts)
    _check_tensors(content["weights"], "weights")
    if content["statistics"] is not None:
        _check_tensors(content["statistics"], "statistics")
    if facts.training is not None:
        # TypeError, ValueError: not what metrics.json can contain
        json.dumps(facts.training.get("metrics"), allow_nan=False)
    if facts.postprocessing and len(facts.postprocessing) != len(facts.spec.classes) - 1:
        raise ValueError("its post-processing is of other classes")
    if facts.ranges is not None and not facts.ranges.fit(facts.spec):
        raise ValueError("its ranges are of other images")
    return Checkpoint(
        step=facts.step,
        config=facts.config,
        spec=facts.spec,
        split=facts.split,
        data=facts.data,
        weights=content["weights"],
        training=facts.training,
        best=msgspec.to_builtins(facts.best),
        statistics=content["statistics"],
        precision=facts.precision,
        user_method=facts.user_method,
        code_version=facts.code_version,
        postprocessing=facts.postprocessing,
        ranges=facts.ranges,
        path=path,
    )


def _check_tensors(values: Any, name: str) -> None:
    """Raise TypeError unless `values` is a dict of tensors by their names."""
    if not isinstance(values, dict):
        raise TypeError(f"{name} is a {type(values).__name__}")
    for key, value in values.items():
        if not isinstance(key, str) or not torch.is_tensor(value):
            raise TypeError(f"{name} contains a {type(value).__name__}, {key}")
