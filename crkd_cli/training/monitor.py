"""Warns when the log shows that a training run goes wrong: each sign once, in one line."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from torch import Tensor

from crkd_cli.data.batch import Labeled

# A class's share of the pseudo-labels is wrong if it is more than this many times its share of the
# labels, or less than this fraction of it.
FACTOR = 5.0
# Share of the run for which it must be wrong, and share at the start in which nothing is judged.
PATIENCE = 0.1
# Validation Dice falls if it is below this fraction of the best.
FALL = 0.5
# Classes that a warning names.
MAX_NAMES = 5

Values = Mapping[str, float | None]


def label_shares(labeled: Labeled, classes: int, *, has_ignored: bool = False) -> dict[str, Tensor]:
    """Return the share of every foreground class among the labeled pixels that count.

    The keys are "label_share_1", "label_share_2" … The share is of the batch, not of whole cases: a
    random crop contains more of what lies in the center. Items that contain foreground by choice do
    not count, because no unlabeled one is chosen; the shares are NaN if all are. With
    `has_ignored`, the label may contain the number `classes`, at pixels that do not count.
    """
    label = labeled.label
    shares = {
        f"label_share_{k}": _mean_of_random_items(label == k, labeled.chosen)
        for k in range(1, classes)
    }
    if not has_ignored:
        return shares
    counted = _mean_of_random_items(label < classes, labeled.chosen)
    counted = counted.clamp(min=1 / label.numel())
    return {name: share / counted for name, share in shares.items()}


def _mean_of_random_items(mask: Tensor, chosen: Tensor | None) -> Tensor:
    """Return the mean of mask [B, *S] over the items that are not `chosen`."""
    if chosen is None:
        return mask.float().mean()
    weights = (~chosen).float()
    return (mask.flatten(1).float().mean(1) * weights).sum() / weights.sum()


class _Share(NamedTuple):
    """The share of a class in the pseudo-labels, and the one that is expected of it."""

    name: str
    share: float
    expected: float


class TrainingMonitor:
    """Checks the log lines of a run as they are written; None or NaN are undefined values.

    `classes` includes the background; `steps` is the length of the run. `lines` are the earlier log
    lines of a resumed run, whose signs are not reported again.
    """

    def __init__(
        self, classes: Sequence[str], steps: int, lines: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self._classes, self._steps = classes, steps
        self._label_shares: dict[int, list[float]] = defaultdict(list)  # by class
        self._wrong_since: dict[int, int] = {}  # class → step
        self._reported: set[str] = set()
        self._best_dice, self._best_step = 0.0, 0
        for line in lines:
            self(line["step"], line)

    def __call__(self, step: int, values: Values) -> list[str]:
        """Return the warnings that the log line of `step` causes."""
        for k in range(1, len(self._classes)):
            share = values.get(f"label_share_{k}")
            if share is not None and not math.isnan(share):
                self._label_shares[k].append(share)
        warnings = [self._check_absent_classes(values)]
        if step >= PATIENCE * self._steps:
            warnings += self._check_shares(step, values)
            warnings.append(self._check_dice(step, values))
        return [warning for warning in warnings if warning]

    def _check_shares(self, step: int, values: Values) -> list[str]:
        """Return a warning for all classes that are too rare since the same step, or too common."""
        wrong: dict[tuple[int, str], list[_Share]] = defaultdict(list)
        for k in range(1, len(self._classes)):
            share = values.get(f"share_{k}")
            expected = fmean(self._label_shares[k] or [0.0])
            if share is None or not expected:
                continue
            if expected / FACTOR <= share <= expected * FACTOR:
                self._wrong_since.pop(k, None)
                continue
            since = self._wrong_since.setdefault(k, step)
            if step - since >= PATIENCE * self._steps and self._is_new(f"share {k}"):
                advice = "lower" if share < expected else "raise"
                wrong[since, advice].append(_Share(self._classes[k], share, expected))
        return [_describe_shares(found, since, advice) for (since, advice), found in wrong.items()]

    def _check_absent_classes(self, values: Values) -> str | None:
        classes = self._classes[1:]
        absent = [name for name in classes if _is_undefined(values, f"val/dice/{name}")]
        if not absent or not self._is_new("absent"):
            return None
        names = ", ".join(absent[:MAX_NAMES])
        if len(absent) > MAX_NAMES:
            names += f" or {len(absent) - MAX_NAMES} other classes"
        consequence = "best.pth is chosen by the other classes"
        if _is_undefined(values, "val/dice"):
            consequence = "best.pth is not chosen, and the last checkpoint is the result"
        return f"warning: no validation case contains {names}, so {consequence}"

    def _check_dice(self, step: int, values: Values) -> str | None:
        dice = values.get("val/dice")
        if dice is None or math.isnan(dice):
            return None
        if dice > self._best_dice:
            self._best_dice, self._best_step = dice, step
        if dice >= FALL * self._best_dice or not self._is_new("fall"):
            return None
        return (
            f"warning: validation Dice fell to {100 * dice:.1f} % at step {step}, from "
            f"{100 * self._best_dice:.1f} % at step {self._best_step}, which best.pth keeps; if it "
            "does not recover, try a smaller --set train.lr= in another run folder (--out)"
        )

    def _is_new(self, sign: str) -> bool:
        """Whether `sign` was not reported yet; it counts as reported from now on."""
        is_new = sign not in self._reported
        self._reported.add(sign)
        return is_new


def _describe_shares(shares: Sequence[_Share], since: int, advice: str) -> str:
    """Return the warning about classes with a wrong share since a step."""
    end = (
        f"as common in the unlabeled cases, {advice} the method's confidence (--set) in another "
        "run folder, or label more cases"
    )
    if len(shares) == 1:
        (name, share, expected) = shares[0]
        return (
            f"warning: {name} has been {_percent(share)} of the pseudo-labels since step {since}, "
            f"but is {_percent(expected)} of the labels; if it is {end}"
        )
    named = [
        f"{name} ({_percent(share)} instead of {_percent(expected)})"
        for name, share, expected in shares[:MAX_NAMES]
    ]
    if len(shares) > MAX_NAMES:
        named.append("…")
    rare = "rarer" if advice == "lower" else "more common"
    return (
        f"warning: {len(shares)} classes have been much {rare} in the pseudo-labels than in the "
        f"labels since step {since}: {', '.join(named)}; if they are {end}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _is_undefined(values: Values, name: str) -> bool:
    """Return whether `values` contain an undefined value called `name`."""
    if name not in values:
        return False
    value = values[name]
    return value is None or math.isnan(value)
