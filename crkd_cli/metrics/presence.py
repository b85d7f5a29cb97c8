"""Count the cases without a class, and those of them in which a model predicts it.

Legend: N cases, K − 1 foreground classes. Sizes are in pixels or voxels, without the ignored ones.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.metrics.names import UNDEFINED

Sizes = NDArray[np.integer[Any]]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Presence:
    """In how many cases a class is absent, and in how many of these it is predicted."""

    absent: int  # cases whose truth does not contain the class
    false_positives: int  # absent cases in which the class is predicted

    def __add__(self, other: "Presence") -> "Presence":
        """Return the counts over the classes, or runs, of both."""
        return Presence(self.absent + other.absent, self.false_positives + other.false_positives)

    def __str__(self) -> str:
        """Return "3/8": predicted in 3 of 8 cases without the class."""
        return f"{self.false_positives}/{self.absent}" if self.absent else UNDEFINED


def count_absent(truth: Sizes, predicted: Sizes) -> list[Presence]:
    """Count the cases without each class, from the sizes [N, K − 1] of both masks."""
    absent = truth == 0
    false_positives = absent & (predicted > 0)
    counts = zip(absent.sum(0).tolist(), false_positives.sum(0).tolist(), strict=True)
    return [Presence(*pair) for pair in counts]


def drop_absent_classes(scores: Scores, truth: Sizes) -> Scores:
    """Return `scores` [N, K − 1, …] with NaN for the classes that no case contains.

    Such a class could only score 0 or be undefined; its false positives are counted instead.

    Args:
        scores: Scores of every case and class.
        truth: Sizes [N, K − 1] of the true masks.
    """
    kept = scores.copy()
    kept[:, ~(truth > 0).any(0)] = np.nan
    return kept
