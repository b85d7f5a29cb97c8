"""UA-MT (Yu, Wang, Li, Fu and Heng, "Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left Atrium Segmentation",
MICCAI 2019): a mean teacher that is followed only where it is certain.

Certain means: the mean answer of several passes with other noise and other dropped features has little entropy.
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
    MeanTeaching,
    Task,
    forward_concat,
    require_unlabeled,
    supervised_loss,
)
from crkd_cli.schedules import sigmoid_ramp

SMALLEST = 1e-6  # probability in a logarithm
START = 0.75  # the entropy threshold at first, as a share of the one at the end


@METHODS.register
class UaMt(MeanTeaching):
    """L = L_sup + λ(t) · mean (p_student − p_teacher)² over the pixels with U < h(t), U the entropy of the mean of `passes`."""

    author_settings: ClassVar[AuthorSettings] = {
        "acdc": {"train.steps": 30000},
        "la": {  # the learning rate falls every 2,500 steps
            "train.steps": 6000,
            "train.lr_schedule": "step",
            "train.lr_milestones": [0.41667, 0.83333],
            "methods.ua_mt.dice_classes": "foreground",
        },
    }

    class Params(MeanTeaching.Params, frozen=True):
        consistency_weight: NonNegative = 0.1  # λ at the end of its ramp
        rampup: NonNegative = 1.0  # share of the run over which λ rises
        passes: Annotated[int, msgspec.Meta(ge=2, multiple_of=2)] = (
            8  # of the teacher, for the uncertainty
        )
        dice_classes: DiceClasses = "all"  # classes of the Dice loss
        legacy_constants: bool = (
            False  # h and the mean over classes as for two classes, however many: SSL4MIS on ACDC
        )

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params)
        self.classes = 2 if params.legacy_constants else task.classes

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        weak = require_unlabeled(batch.unlabeled).weak
        log_l, log_u = forward_concat(self.student, batch.labeled.image, weak)
        taught, certain = self.teach(weak, step)
        labeled = supervised_loss(
            log_l, batch.labeled.label, dice=partial(dice_loss, classes=self.params.dice_classes)
        )
        by_pixel = squared_difference(log_u.exp(), taught) * (self.task.classes / self.classes)
        consistency = masked_mean(by_pixel, certain)
        weight = self.params.consistency_weight * sigmoid_ramp(
            step, self.params.rampup * self.task.steps
        )
        terms = {"labeled": labeled, "consistency": consistency, "kept": certain.float().mean()}
        return {"total": labeled + weight * consistency, **terms}

    @torch.no_grad()
    def teach(self, weak: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """weak [U, C, *S] → the teacher's probabilities [U, K, *S] in one pass, and where it is certain in others, [U, *S]."""
        taught = self.answer(weak)
        mean = torch.zeros_like(taught)
        for _ in range(
            self.params.passes // 2
        ):  # two at a time, sharing the statistics of batch norm, as published
            twice = noise(torch.cat([weak, weak]), self.params.noise)
            for p in probabilities(self.teacher.network(twice)).chunk(2):
                mean += p / self.params.passes
        return taught, entropy(mean.clamp(min=SMALLEST).log()) < self.threshold(step)

    def threshold(self, step: int) -> float:
        """h(t) in nats: from three quarters of the largest entropy up to it, over the run."""
        return (START + (1.0 - START) * sigmoid_ramp(step, self.task.steps)) * math.log(
            self.classes
        )
