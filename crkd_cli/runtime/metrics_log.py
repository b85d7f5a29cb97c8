"""The logs of a run folder: log.jsonl, metrics.json and TensorBoard events."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.paths import atomic_write

# What the loop logs in addition to a method's losses.
RATES = ("grad_norm", "steps_per_second", "waiting", "skipped", "restored_step")


class MetricsLog:
    """Writes log.jsonl and, with `tensorboard`, event files.

    Lines after `step` are dropped: they are from a run that was killed and is now resumed from
    there. Raises UsageError if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool) -> None:
        self.file = folder / "log.jsonl"
        kept = [json.dumps(line) + "\n" for line in read_log(folder) if line["step"] <= step]
        with atomic_write(self.file) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self._events = _event_writer(folder, step) if tensorboard else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the line {"step": step, **values}, with null for values that are not finite.

        Raises CrkdError if the disk is full.
        """
        rounded = {name: _round(value) for name, value in values.items()}
        line = json.dumps({"step": step, **rounded}, allow_nan=False)
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise CrkdError(f"cannot write {self.file}: {error.strerror}") from error
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event file."""
        if self._events is not None:
            self._events.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's log.jsonl, without a last line that a kill cut short."""
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
    """Write metrics.json."""
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    with atomic_write(folder / "metrics.json") as temporary:
        temporary.write_text(text, encoding="utf-8")


def mean_label_shares(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean share of each class in the labels over the lines of a log.

    The keys are those of the pseudo-labels' shares: "share_1", "share_2" …
    """
    keys = sorted({key for line in lines for key in line if key.startswith("label_share_")})
    return {
        key.removeprefix("label_"): fmean(line[key] for line in lines if key in line)
        for key in keys
    }


def _event_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "train.tensorboard needs TensorBoard: pip install 'crkd[tensorboard]'"
        ) from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)


def _round(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
