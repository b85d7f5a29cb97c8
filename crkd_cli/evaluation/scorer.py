"""The scores of one case. Legend: K classes with the background, M metrics, *S spatial axes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.store import CaseInfo
from crkd_cli.evaluation import paper
from crkd_cli.inference.inferer import Protocol
from crkd_cli.metrics.overlap import confusion, dice, jaccard
from crkd_cli.metrics.surface import surface

TOLERANCE = 2.0  # of the NSD, in mm or px

Labels = NDArray[np.integer[Any]]


class CaseScores(NamedTuple):
    """The foreground classes of one case."""

    scores: NDArray[np.float64]  # [K − 1, M], NaN if undefined
    truth: NDArray[np.int64]  # [K − 1]: pixels or voxels of the true masks, without ignored ones
    predicted: NDArray[np.int64]  # [K − 1], of the predicted masks


class Scorer:
    """Computes all metrics of a case.

    Distances are in mm if the spacing of every case is known, else in px; with the paper protocol
    always in px.
    """

    def __init__(
        self, source: str, classes: int, protocol: Protocol, cases: Sequence[CaseInfo]
    ) -> None:
        self._source, self._classes, self._protocol = source, classes, protocol
        in_mm = protocol == "strict" and all(case.label_spacing_mm for case in cases)
        self._unit = "mm" if in_mm else "px"
        distances = ["hd95_", "assd_", "asd_", f"nsd_{TOLERANCE:g}"]
        if protocol == "paper":
            distances = ["hd95_", "asd_"]
        self.metrics = ("dice", "jaccard", *(name + self._unit for name in distances))

    def __call__(self, labels: Labels, truth: Labels, case: CaseInfo) -> CaseScores:
        """Score `labels` [*S] against `truth` [*S].

        Where the truth is ignored (class number K), both are background.
        """
        ignored = truth == self._classes
        if ignored.any():
            labels = np.where(ignored, 0, labels)
        voxels = confusion(labels, truth, self._classes)
        sizes = voxels.sum(0)[1:], voxels.sum(1)[1:]
        if self._protocol == "paper":
            return CaseScores(self._paper_scores(labels, truth), *sizes)
        distances = self._distances(labels, truth, case, present=(sizes[0] + sizes[1]) > 0)
        overlap = np.stack([dice(voxels)[1:], jaccard(voxels)[1:]], axis=1)
        return CaseScores(np.hstack([overlap, distances]), *sizes)

    def _paper_scores(self, labels: Labels, truth: Labels) -> NDArray[np.float64]:
        classes = range(1, self._classes)
        return np.stack([paper.scores(labels == k, truth == k, self._source) for k in classes])

    def _distances(
        self, labels: Labels, truth: Labels, case: CaseInfo, present: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return distances and NSD [K − 1, 4]; NaN for classes that are `present` in no mask."""
        spacing = (1.0,) * truth.ndim
        if self._unit == "mm" and case.label_spacing_mm is not None:
            spacing = case.label_spacing_mm
        scores = np.full((self._classes - 1, 4), np.nan)
        for k in np.flatnonzero(present) + 1:
            scores[k - 1] = surface(labels == k, truth == k, spacing, TOLERANCE)
        return scores
