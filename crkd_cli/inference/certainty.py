"""What is inferred of a case, and how certain it is, from sums over the voxels.

Legend: B batch, K classes, *S spatial axes; n planes at a time, H × W the size of a plane.
"""

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Certainty(NamedTuple):
    """Figures from 0 to 1 about the labels of a network, before post-processing."""

    # Mean probability of the predicted class over the foreground. Of an empty mask, 1 − the highest
    # probability of the foreground.
    confidence: float
    # 1 − Dice between models and flips, on average; None if there is only one of them.
    disagreement: float | None


class Inference(NamedTuple):
    """What is inferred of a case."""

    labels: NDArray[Any]  # [*S] class numbers
    probabilities: NDArray[np.floating] | None  # [K, *S], if they were asked for
    certainty: Certainty | None  # if it was asked for

    def first_slice(self) -> Self:
        """Return the inference of a 2D image from that of a volume of one slice."""
        maps = self.probabilities
        maps = None if maps is None else maps[:, 0]
        return self._replace(labels=self.labels[0], probabilities=maps)


class CertaintySums:
    """Adds up what `Certainty` is computed from, a few planes of a case at a time.

    The disagreement of P passes (models and flips) is P / (2 (P − 1)) · Σ v / Σ p, where v is the
    variance of the probabilities over passes, summed over classes, and p the mean probability of
    the foreground. If all probabilities are 0 or 1, this is the share of labels that two passes do
    not have in common: 1 − Dice if P is 2.
    """

    def __init__(self, passes: int) -> None:
        self._passes = passes
        self._size = 0  # voxels of the foreground
        self._common = self._foreground = self._variance = self._highest = 0.0

    def add(
        self, labels: Tensor, highest: Tensor, background: Tensor, variance: Tensor | None
    ) -> None:
        """Add planes [n, H, W].

        Args:
            labels: Class numbers.
            highest: Their probabilities.
            background: The probability of the background.
            variance: That of the probabilities, if there are several passes.
        """
        mask = labels > 0
        self._size += int(mask.sum())
        self._common += float((highest * mask).sum(dtype=torch.float64))
        self._highest = max(self._highest, 1 - float(background.min()))
        if variance is not None:
            self._foreground += float((1 - background).sum(dtype=torch.float64))
            self._variance += float(variance.sum(dtype=torch.float64))

    def certainty(self) -> Certainty:
        """Return the figures of the case."""
        confidence = self._common / self._size if self._size else 1 - self._highest
        if self._passes == 1:
            return Certainty(confidence, None)
        scale = self._passes / (2 * (self._passes - 1))
        return Certainty(confidence, scale * self._variance / max(self._foreground, 1e-6))


def sum_of_squares(probabilities: Tensor) -> Tensor:
    """Return [B, 1, *S] of probabilities [B, K, *S]."""
    return probabilities.square().sum(1, keepdim=True)
