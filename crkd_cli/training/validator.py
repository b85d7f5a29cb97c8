"""Validation during training: a copy of the method is scored in a background thread."""

import copy
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from crkd_cli.data.store import Store
from crkd_cli.inference.inferer import Inferer
from crkd_cli.methods.base import Method
from crkd_cli.metrics.overlap import confusion, dice
from crkd_cli.metrics.presence import drop_absent_classes
from crkd_cli.metrics.summary import means
from crkd_cli.runtime.checkpoint import Checkpoint, save_checkpoint
from crkd_cli.training.batch_norm import BatchNormRecalibration


@dataclass(frozen=True)
class ValidationScore:
    """The Dice of a snapshot, in [0, 1], or NaN if undefined."""

    step: int
    dice: dict[str, float]  # "dice/NAME" of every foreground class, and "dice", their mean


class Validator:
    """Scores snapshots on the validation cases, one at a time, and saves the best as best.pth.

    Of equal scores the earliest is the best; an undefined one never is. `template` is the
    checkpoint of the run, without weights. With `recalibration`, a snapshot predicts with
    recomputed batch norm statistics.
    """

    def __init__(
        self,
        method: Method,
        store: Store,
        cases: Sequence[str],
        template: Checkpoint,
        device: torch.device,
        precision: torch.dtype,
        recalibration: BatchNormRecalibration | None,
    ) -> None:
        self._method = copy.deepcopy(method).requires_grad_(False).eval()
        self._inferer = Inferer(
            [self._method.predictor], template.config.data.frame, template.spec, device, precision
        )
        self._store, self._cases = store, cases
        self._template, self._recalibration = template, recalibration
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="validate")
        self._running: Future[ValidationScore] | None = None
        self._path = template.path.with_name("best.pth")
        self.best: dict[str, Any] | None = template.best

    def start(self, method: Method, step: int, training: dict[str, Any] | None = None) -> None:
        """Take a snapshot of `method` after `step` steps and score it in the background.

        Call `finish` before. If the snapshot becomes the best, its checkpoint includes
        `training`, so that training can continue from it.
        """
        weights = copy.deepcopy(method.state_dict())
        self._method.load_state_dict(weights)
        statistics = None
        if self._recalibration:
            self._recalibration(self._method.predictor)
            statistics = dict(self._method.predictor.named_buffers())
        snapshot = replace(
            self._template,
            step=step,
            weights=weights,
            training=copy.deepcopy(training),
            statistics=statistics,
        )
        self._running = self._pool.submit(self._score, snapshot)

    def ready(self) -> bool:
        """Whether a validation is done, so that `finish` does not wait."""
        return self._running is not None and self._running.done()

    def finish(self) -> ValidationScore | None:
        """Wait for the running validation and return its score; None if none is running."""
        running, self._running = self._running, None
        return running.result() if running else None

    def close(self) -> None:
        """Wait for the running validation and end the thread."""
        self._pool.shutdown()

    def _score(self, snapshot: Checkpoint) -> ValidationScore:
        self._inferer.refresh()
        scores = validation_dice(self._inferer, self._store, self._cases)
        best = -math.inf if self.best is None else self.best["dice"]
        if scores["dice"] > best:  # False for NaN
            self.best = {"step": snapshot.step, "dice": scores["dice"]}
            save_checkpoint(replace(snapshot, best=self.best), self._path)
        return ValidationScore(snapshot.step, scores)


def validation_dice(inferer: Inferer, store: Store, cases: Sequence[str]) -> dict[str, float]:
    """Return the Dice over `cases`, in [0, 1].

    "dice/NAME" is the mean over the cases of a foreground class, "dice" the mean of the classes. As
    in an evaluation, a case counts for a class that is in its label or predicted; a class that no
    label contains is NaN and does not count.
    """
    classes = store.spec.class_names
    scores, sizes = [], []
    for case in cases:
        reference = store.native_label(case)
        prediction = inferer(store.image(case), reference.shape)
        voxels = confusion(prediction, reference, len(classes))
        scores.append(dice(voxels)[1:])
        sizes.append(voxels.sum(0)[1:])
    by_class = means(drop_absent_classes(np.stack(scores), np.stack(sizes)), axis=0)
    named = {f"dice/{name}": float(mean) for name, mean in zip(classes[1:], by_class, strict=True)}
    return {"dice": float(means(by_class)), **named}
