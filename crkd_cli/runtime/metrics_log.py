"""The logs of a run folder: log.jsonl, metrics.json and TensorBoard events."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from crkd_cli.errors import CrkdError, UsageError, pluralize
from crkd_cli.paths import atomic_write
from crkd_cli.progress import Notify

# What the loop logs in addition to a method's losses.
RATES = ("grad_norm", "steps_per_second", "waiting", "skipped", "restored_step")


class MetricsLog:
    """Writes log.jsonl and, with `tensorboard`, event files.

    Lines after `step` are dropped: they are from a run that was killed and is now resumed from
    there. Damaged lines are dropped with a warning. Raises UsageError if TensorBoard is not
    installed.
    """

    def __init__(
        self, folder: Path, step: int, *, tensorboard: bool, warn: Notify | None = None
    ) -> None:
        self.file = folder / "log.jsonl"
        lines = read_log(folder)
        if warn is not None and (damaged := _count_damaged(self.file, lines)):
            warn(f"{self.file}: {pluralize(damaged, 'damaged line')} dropped")
        kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step]
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
    """Read the lines of a run's log.jsonl, without those that are cut short or damaged."""
    file = folder / "log.jsonl"
    content = file.read_bytes() if file.is_file() else b""
    lines = map(_parse_line, content.split(b"\n"))
    return [line for line in lines if line is not None]


def _count_damaged(file: Path, lines: list[dict[str, Any]]) -> int:
    """Count the lines of the log that are not in `lines`, except a last one cut short by a kill."""
    complete = file.read_bytes().count(b"\n") if file.is_file() else 0
    return max(complete - len(lines), 0)


def _parse_line(text: bytes) -> dict[str, Any] | None:
    """Return the values of a line of the log, or None if it is invalid."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return None
    return line if all(map(_is_loggable, line.values())) else None


def _is_loggable(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Write metrics.json."""
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    with atomic_write(folder / "metrics.json") as temporary:
        temporary.write_text(text, encoding="utf-8")


def mean_label_shares(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean share of each class in the labels over the lines of a log.

    The keys are those of the pseudo-labels' shares: "share_1", "share_2" …
    """
    shares: dict[str, list[float]] = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith("label_share_") and value is not None:
                shares.setdefault(key.removeprefix("label_"), []).append(value)
    return {key: fmean(values) for key, values in sorted(shares.items())}


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
