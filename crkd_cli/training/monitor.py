"""Signs in the log that a training run goes wrong, each told once, in one line."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

FACTOR = 5.0  # pseudo-labels with a share of a class beyond this many times that in the labels, or below its part
PATIENCE = 0.1  # share of the run for which they must be so, and in which nothing is judged yet
FALL = 0.5  # of the best validation Dice

Values = Mapping[str, float | None]


def label_shares(label: Tensor, classes: int) -> dict[str, Tensor]:
    """The share of every foreground class among the pixels of a batch's label [L, *S]: "label_share_1" …

    Of the batch, not of the whole cases: a random crop holds more of what lies in the middle.
    """
    return {f"label_share_{k}": (label == k).float().mean() for k in range(1, classes)}


class TrainingMonitor:
    """Looks at a run's log lines as they are written; what earlier lines of a resumed run showed is not told again."""

    def __init__(
        self, classes: Sequence[str], steps: int, lines: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        """classes: with the background; steps: length of the run; lines: those of its log so far."""
        self._classes, self._steps = classes, steps
        self._labels: dict[int, list[float]] = defaultdict(
            list
        )  # a class's shares of the labels so far
        self._since: dict[int, int] = {}  # step from which on a class's share is wrong
        self._told: set[str] = set()
        self._best = (0.0, 0)  # validation Dice and its step
        for line in lines:
            self(line["step"], line)

    def __call__(self, step: int, values: Values) -> list[str]:
        """Warnings that the log line of `step` gives rise to."""
        for k in range(1, len(self._classes)):
            share = values.get(f"label_share_{k}")
            if share is not None:
                self._labels[k].append(share)
        if step < PATIENCE * self._steps:
            return []
        warnings = [self._share(step, k, values) for k in range(1, len(self._classes))]
        return [warning for warning in [*warnings, self._fall(step, values)] if warning]

    def _share(self, step: int, k: int, values: Values) -> str | None:
        found, wanted = values.get(f"share_{k}"), fmean(self._labels[k] or [0.0])
        if found is None or not wanted:
            return None
        if wanted / FACTOR <= found <= wanted * FACTOR:
            self._since.pop(k, None)
            return None
        since = self._since.setdefault(k, step)
        if step - since < PATIENCE * self._steps or not self._first(f"share {k}"):
            return None
        advice = "lower" if found < wanted else "raise"
        return (
            f"warning: {self._classes[k]} has been {100 * found:.2g} % of the pseudo-labels since step {since}, but is "
            f"{100 * wanted:.2g} % of the labels; if the unlabeled cases show it as often, {advice} the method's "
            "confidence (--set) in another run folder, or label more cases"
        )

    def _fall(self, step: int, values: Values) -> str | None:
        dice = values.get("val/dice")
        if dice is None:
            return None
        best, when = self._best = max(self._best, (dice, step), key=lambda one: one[0])
        if dice >= FALL * best or not self._first("fall"):
            return None
        return (
            f"warning: validation Dice fell to {100 * dice:.1f} % at step {step}, from {100 * best:.1f} % at step {when}, "
            "which best.pth keeps; if it does not recover, try a smaller --set train.lr= in another run folder (--out)"
        )

    def _first(self, what: str) -> bool:
        """Whether `what` has not been told yet; from now on it has."""
        new = what not in self._told
        self._told.add(what)
        return new
