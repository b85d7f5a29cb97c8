"""What a run writes besides checkpoints: log.jsonl, metrics.json, curves.png, TensorBoard events."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.paths import atomic_write

# What the loop logs besides a method's losses.
RATES = ("grad_norm", "steps_per_second", "waiting", "skipped", "restored_step")


class MetricsLog:
    """The log of a run folder. Lines after `step` (of a run that was killed and goes on from there) are dropped."""

    def __init__(self, folder: Path, step: int, *, tensorboard: bool) -> None:
        self.file = folder / "log.jsonl"
        kept = [line for line in read_log(folder) if line["step"] <= step]
        with atomic_write(self.file) as temporary:
            temporary.write_text(
                "".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8"
            )
        self._events = _events(folder, step) if tensorboard else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line: {"step": step, **values}; null for what is not finite. Raises CrkdError if the disk is full."""
        line = json.dumps(
            {"step": step, **{name: _short(value) for name, value in values.items()}},
            allow_nan=False,
        )
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise CrkdError(f"cannot write {self.file}: {error.strerror}") from error
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log.jsonl; a last line cut by a kill is left out."""
    file = folder / "log.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    parsed = []
    for line in lines:
        try:
            parsed.append(json.loads(line))
        except ValueError:
            break
    return parsed


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    with atomic_write(folder / "metrics.json") as temporary:
        temporary.write_text(
            json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )


def mean_label_shares(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The classes' shares of the labels, as means over a run's log lines: {"share_1": …}, named as the pseudo-labels' are."""
    names = sorted({name for line in lines for name in line if name.startswith("label_share_")})
    return {
        name.removeprefix("label_"): fmean(line[name] for line in lines if name in line)
        for name in names
    }


def _events(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "train.tensorboard needs TensorBoard: pip install 'crkd[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
