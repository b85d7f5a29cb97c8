"""Mean teacher, applied to segmentation as in SSL4MIS.

A. Tarvainen and H. Valpola, "Mean teachers are better role models", NeurIPS 2017.

On unlabeled images the student is trained to agree with its moving average, which sees them with
added noise and its own dropout.
"""

from functools import partial
from typing import ClassVar

from torch import Tensor

from crkd_cli.config import Fraction, NonNegative
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import DiceClasses, dice_loss
from crkd_cli.losses.pixel import masked_mean, squared_difference
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import (
    AuthorSettings,
    MeanTeacherBase,
    forward_concat,
    require_unlabeled,
)
from crkd_cli.schedules import sigmoid_ramp


@METHODS.register
class MeanTeacher(MeanTeacherBase):
    """L = L_sup + λ(t) · mean (p_student − p_teacher)², over unlabeled pixels and classes."""

    author_settings: ClassVar[AuthorSettings] = {
        "acdc": {"train.steps": 30000},
        "la": {  # as in UA-MT's program: the learning rate drops every 2,500 steps
            "train.steps": 6000,
            "train.lr_schedule": "step",
            "train.lr_milestones": [0.41667, 0.83333],
            "methods.mean_teacher.rampup_delay": 0.0,
            "methods.mean_teacher.dice_classes": "foreground",
        },
    }

    class Params(MeanTeacherBase.Params, frozen=True):
        """Settings of mean teacher."""

        consistency_weight: NonNegative = 0.1  # λ at the end of its ramp
        rampup: NonNegative = 1.0  # share of the run over which λ rises
        rampup_delay: Fraction = 1 / 30  # share of the run during which λ is 0
        dice_classes: DiceClasses = "all"  # classes of the Dice loss

    params: Params

    def losses(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        weak = require_unlabeled(batch.unlabeled).weak
        log_labeled, log_unlabeled = forward_concat(self.student, batch.labeled.image, weak)
        target = self.teacher_probabilities(weak)
        dice = partial(dice_loss, classes=self.params.dice_classes)
        labeled = self.supervised_loss(log_labeled, batch.labeled.label, dice=dice)
        consistency = masked_mean(squared_difference(log_unlabeled.exp(), target), None)
        return {
            "total": labeled + self.weight(step) * consistency,
            "labeled": labeled,
            "consistency": consistency,
        }

    def weight(self, step: Tensor) -> Tensor | float:
        """Return λ at `step`."""
        params, steps = self.params, self.task.steps
        begun = step >= params.rampup_delay * steps
        return sigmoid_ramp(step, params.rampup * steps) * begun * params.consistency_weight
