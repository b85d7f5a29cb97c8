"""Signs in the log that a training run goes wrong, each told once, in one line."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from crkd_cli.data.case import Store
from crkd_cli.data.splits import Split

FACTOR = 5.0      # pseudo-labels with a share of a class beyond this many times that in the labels, or below its part
PATIENCE = 0.1    # share of the run for which they must be so, and in which nothing is judged yet
FALL = 0.5        # of the best validation Dice

Values = Mapping[str, float | None]


def label_shares(store: Store, split: Split) -> dict[str, float]:
    """The share of every foreground class among the pixels of the labelled cases: "label_share_1" …"""
    classes = len(store.spec.classes)
    counts = np.zeros(classes, np.int64)
    for case in split.cases(store, "labeled"):
        counts += np.bincount(np.asarray(store.label(case)).ravel(), minlength=classes)
    return {f"label_share_{k}": float(counts[k] / counts.sum()) for k in range(1, classes)}


class Watch:
    """Looks at a run's log lines as they are written; what earlier lines of a resumed run showed is not told again."""

    def __init__(self, classes: Sequence[str], steps: int, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        """classes: with the background; steps: length of the run; lines: those of its log so far."""
        self._classes, self._steps = classes, steps
        self._since: dict[int, int] = {}    # step from which on a class's share is wrong
        self._told: set[str] = set()
        self._best = (0.0, 0)               # validation Dice and its step
        for line in lines:
            self(line["step"], line)

    def __call__(self, step: int, values: Values) -> list[str]:
        """Warnings that the log line of `step` gives rise to."""
        if step < PATIENCE * self._steps:
            return []
        warnings = [self._share(step, k, values) for k in range(1, len(self._classes))]
        return [warning for warning in [*warnings, self._fall(step, values)] if warning]

    def _share(self, step: int, k: int, values: Values) -> str | None:
        found, wanted = values.get(f"share_{k}"), values.get(f"label_share_{k}")
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
            f"{100 * wanted:.2g} % of the labels; if the unlabelled cases show it as often, {advice} the method's "
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
