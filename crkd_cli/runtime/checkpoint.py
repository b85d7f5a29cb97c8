"""Checkpoints: tensors and plain types only, written atomically, loaded without running code from the file.

They hold no states of random generators: every draw of a run is seeded anew by (seed, step) or (seed, item), see step_seed and
data/stream.py, so that the step alone says how a run goes on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from crkd_cli import __version__, renamed
from crkd_cli.config import Config, Strict, dump
from crkd_cli.data.splits import Split
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError
from crkd_cli.paths import atomic_write
from crkd_cli.runtime.run_folder import result_checkpoint

FORMAT = "crkd checkpoint 5"
_READABLE = ("crkd checkpoint 4", FORMAT)  # 4: with the old names in crkd_cli/renamed.py


class UserMethod(Strict, frozen=True):
    """A method from a user's own file. No command but `crkd train --method FILE` runs the file."""

    sha256: str  # of the file
    predictor: str  # the name in the method of the network that predicts, which needs no code but the package's


@dataclass(frozen=True)
class Checkpoint:
    """All that evaluation and prediction need; `training` holds what resuming needs besides."""

    step: int  # batches trained on
    config: Config
    spec: DatasetSpec
    split: Split
    data: str  # the store's digest when the run began
    weights: dict[str, Tensor]  # the method's state
    # Optimizer state, counters, a finished run's metrics; None in best.pth but where the method restores it.
    training: dict[str, Any] | None
    best: dict[str, Any] | None  # step and score of the best validation so far
    statistics: dict[str, Tensor] | None = (
        None  # renewed ones of the predictor; None: those in weights are to be used
    )
    precision: str = "fp32"  # bf16 or fp32: what the run computes in, which resuming keeps
    user_method: UserMethod | None = None  # None for a method that is installed
    code_version: str = __version__
    path: Path = Path()


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes `checkpoint` to `path`: a crash leaves the old file or the new one."""
    content = {
        "format": FORMAT,
        "step": checkpoint.step,
        "config": dump(checkpoint.config),
        "spec": msgspec.to_builtins(checkpoint.spec),
        "split": msgspec.to_builtins(checkpoint.split),
        "data": checkpoint.data,
        "weights": checkpoint.weights,
        "training": checkpoint.training,
        "best": checkpoint.best,
        "statistics": checkpoint.statistics,
        "precision": checkpoint.precision,
        "own": msgspec.to_builtins(checkpoint.user_method),
        "code_version": checkpoint.code_version,
    }
    with atomic_write(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's own writer reports a full disk so
            raise OSError(f"{error}".splitlines()[0]) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, or in the run folder `path` (best.pth, else last.pth), on the CPU.

    Raises CrkdError for anything else, and runs no code from the file.
    """
    advice = "give a best.pth or last.pth that crkd train wrote"
    if path.is_dir() and result_checkpoint(path).is_file():
        path = result_checkpoint(path)
    if not path.is_file():
        there = result_checkpoint(path.parent)
        raise CrkdError(
            f"there is no checkpoint {path}; {f'there is {there}' if there.is_file() else advice}"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception:  # damaged and foreign files fail in many ways, all of which mean the same
        raise CrkdError(
            f"{path} is no checkpoint, or it is damaged or unsafe to load; {advice}"
        ) from None
    if not isinstance(content, dict) or content.get("format") not in _READABLE:
        raise CrkdError(f"{path} is no checkpoint of this version of crkd; {advice}")
    try:
        renamed.translate_config(content["config"])
        weights, statistics = content["weights"], content["statistics"]
        return Checkpoint(
            step=content["step"],
            config=msgspec.convert(content["config"], Config),
            spec=msgspec.convert(content["spec"], DatasetSpec),
            split=msgspec.convert(content["split"], Split),
            data=content["data"],
            weights=renamed.translate_weights(weights),
            training=content["training"],
            best=content["best"],
            statistics=statistics and renamed.translate_weights(statistics),
            precision=content["precision"],
            user_method=msgspec.convert(content.get("own"), UserMethod | None),
            code_version=content["code_version"],
            path=path,
        )
    except (KeyError, msgspec.ValidationError) as error:
        raise CrkdError(f"{path} is a damaged checkpoint ({error}); {advice}") from None
