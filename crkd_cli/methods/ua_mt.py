"""UA-MT: a mean teacher that is followed only where it is certain.

L. Yu, S. Wang, X. Li, C.-W. Fu and P.-A. Heng, "Uncertainty-aware Self-ensembling Model for
Semi-supervised 3D Left Atrium Segmentation", MICCAI 2019.

The teacher is certain where the mean prediction of several passes, each with its own noise and
dropout, has low entropy.
"""

import math
from functools import partial
from typing import Annotated, ClassVar

import msgspec
import torch
from torch import Tensor

from crkd_cli.augment.intensity import noise
from crkd_cli.config import NonNegative
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import DiceClasses, dice_loss
from crkd_cli.losses.pixel import entropy, masked_mean, probabilities, squared_difference
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import (
    AuthorSettings,
    MeanTeacherBase,
    Task,
    forward_concat,
    require_unlabeled,
)
from crkd_cli.schedules import sigmoid_ramp

MIN_PROBABILITY = 1e-6  # keeps the logarithm finite
INITIAL_THRESHOLD = 0.75  # h at the start of the run, as a fraction of h at its end

EvenCount = Annotated[int, msgspec.Meta(ge=2, le=1000, multiple_of=2)]


@METHODS.register
class UaMt(MeanTeacherBase):
    """L = L_sup + λ(t) · mean (p_student − p_teacher)² over the pixels with U < h(t).

    U is the entropy of the mean of `passes` predictions.
    """

    author_settings: ClassVar[AuthorSettings] = {
        "acdc": {"train.steps": 30000},
        "la": {  # the learning rate drops every 2,500 steps
            "train.steps": 6000,
            "train.lr_schedule": "step",
            "train.lr_milestones": [0.41667, 0.83333],
            "methods.ua_mt.dice_classes": "foreground",
        },
    }

    class Params(MeanTeacherBase.Params, frozen=True):
        """Settings of UA-MT."""

        consistency_weight: NonNegative = 0.1  # λ at the end of its ramp
        rampup: NonNegative = 1.0  # share of the run over which λ rises
        passes: EvenCount = 8  # passes of the teacher that the uncertainty is estimated from
        dice_classes: DiceClasses = "all"  # classes of the Dice loss
        # Compute h and the mean over classes for two classes, whatever K is, as SSL4MIS on ACDC.
        legacy_constants: bool = False

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params)
        self.classes = 2 if params.legacy_constants else task.classes

    def losses(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        params = self.params
        weak = require_unlabeled(batch.unlabeled).weak
        log_labeled, log_unlabeled = forward_concat(self.student, batch.labeled.image, weak)
        target = self.teacher_probabilities(weak)
        certain = self.uncertainty(weak) < self.threshold(step)

        dice = partial(dice_loss, classes=params.dice_classes)
        labeled = self.supervised_loss(log_labeled, batch.labeled.label, dice=dice)
        difference = squared_difference(log_unlabeled.exp(), target)
        consistency = masked_mean(difference * (self.task.classes / self.classes), certain)
        ramp = sigmoid_ramp(step, params.rampup * self.task.steps)
        return {
            "total": labeled + params.consistency_weight * ramp * consistency,
            "labeled": labeled,
            "consistency": consistency,
            "kept": certain.float().mean(),
        }

    @torch.no_grad()
    def uncertainty(self, weak: Tensor) -> Tensor:
        """Return the entropy [U, *S] of the teacher's mean prediction for images [U, C, *S]."""
        mean = weak.new_zeros(len(weak), self.task.classes, *weak.shape[2:])
        # As published, two passes at a time share their batch norm statistics.
        for _ in range(self.params.passes // 2):
            noisy = noise(torch.cat([weak, weak]), self.params.noise)
            for p in probabilities(self.teacher.network(noisy)).chunk(2):
                mean += p / self.params.passes
        return entropy(mean.clamp(min=MIN_PROBABILITY).log())

    def threshold(self, step: Tensor) -> Tensor | float:
        """Return h at `step` in nats: over the run it rises to the largest possible entropy."""
        ramp = sigmoid_ramp(step, self.task.steps)
        fraction = INITIAL_THRESHOLD + (1.0 - INITIAL_THRESHOLD) * ramp
        return fraction * math.log(self.classes)
