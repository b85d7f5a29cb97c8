"""Validation while training goes on: a copy of the method is scored in one background thread."""

import copy
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crkd_cli.data.store import Store
from crkd_cli.inference.inferer import Inferer
from crkd_cli.methods.base import Method
from crkd_cli.metrics.overlap import confusion, dice
from crkd_cli.runtime.checkpoint import Checkpoint, save_checkpoint
from crkd_cli.training.batch_norm import BatchNormRecalibration


@dataclass(frozen=True)
class ValidationScore:
    step: int
    dice: dict[str, float]  # "dice" the mean of the classes, "dice/NAME" each, in [0, 1]


class Validator:
    """Scores snapshots on the validation cases, one at a time, and keeps the best as best.pth (the earliest of equals)."""

    def __init__(
        self,
        method: Method,
        store: Store,
        cases: Sequence[str],
        blank: Checkpoint,
        device: torch.device,
        precision: torch.dtype,
        recalibration: BatchNormRecalibration | None,
    ) -> None:
        """`renewal`: None where the statistics of batch norm stay as they were trained."""
        self._copy = copy.deepcopy(method).requires_grad_(False).eval()
        self._inferer = Inferer(
            self._copy.predictor, blank.config.data.frame, blank.spec, device, precision
        )
        self._store, self._cases, self._blank, self._recalibration = (
            store,
            cases,
            blank,
            recalibration,
        )
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="validate")
        self._running: Future[ValidationScore] | None = None
        self.best: dict[str, Any] | None = blank.best
        self.file: Path = blank.path.with_name("best.pth")

    def start(self, method: Method, step: int, training: dict[str, Any] | None = None) -> None:
        """Takes a snapshot of `method` after `step` steps and scores it in the background. Call `finish` before.

        `training`: what the checkpoint of a best score is to hold for training to go on from it.
        """
        weights = copy.deepcopy(method.state_dict())
        self._copy.load_state_dict(weights)
        statistics = None
        if self._recalibration:
            self._recalibration(self._copy.predictor)
            statistics = dict(self._copy.predictor.named_buffers())
        snapshot = replace(
            self._blank,
            step=step,
            weights=weights,
            training=copy.deepcopy(training),
            statistics=statistics,
        )
        self._running = self._pool.submit(self._score, snapshot)

    def ready(self) -> bool:
        """Whether a score waits to be fetched."""
        return self._running is not None and self._running.done()

    def finish(self) -> ValidationScore | None:
        """Waits for the running validation, if there is one, and gives its score."""
        running, self._running = self._running, None
        return running.result() if running else None

    def close(self) -> None:
        self._pool.shutdown()

    def _score(self, snapshot: Checkpoint) -> ValidationScore:
        self._inferer.refresh()
        score = ValidationScore(
            snapshot.step, validation_dice(self._inferer, self._store, self._cases)
        )
        if self.best is None or score.dice["dice"] > self.best["dice"]:
            self.best = {"step": snapshot.step, "dice": score.dice["dice"]}
            save_checkpoint(replace(snapshot, best=self.best), self.file)
        return score


def validation_dice(inferer: Inferer, store: Store, cases: Sequence[str]) -> dict[str, float]:
    """Dice over `cases`, for training: "dice/NAME" of every foreground class, "dice" the mean of the classes."""
    classes = store.spec.classes
    scores = []
    for case in cases:
        truth = store.native_label(case)
        labels = inferer(store.image(case), truth.shape)
        scores.append(dice(confusion(labels, truth, len(classes)))[1:])
    means = np.mean(scores, axis=0)
    by_class = {f"dice/{name}": float(mean) for name, mean in zip(classes[1:], means, strict=True)}
    return {"dice": float(means.mean()), **by_class}
