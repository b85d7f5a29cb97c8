"""AC-MT: a mean teacher that is followed only where the student is in doubt.

Z. Xu, Y. Wang, D. Lu, X. Luo, J. Yan, Y. Zheng and R. K.-y. Tong, "Ambiguity-selective
consistency regularization for mean-teacher semi-supervised medical image segmentation", Medical
Image Analysis 2023.

The student is in doubt where its prediction has high entropy. This is the first of the paper's
four ways to select pixels (Ent).
"""

import math
from typing import ClassVar

from torch import Tensor

from crkd_cli.config import Fraction, NonNegative
from crkd_cli.data.batch import Batch
from crkd_cli.losses.pixel import entropy, masked_mean, squared_difference
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import (
    AuthorSettings,
    MeanTeacherBase,
    forward_concat,
    require_unlabeled,
)
from crkd_cli.schedules import sigmoid_ramp


@METHODS.register
class AcMt(MeanTeacherBase):
    """L = L_sup + λ(t) · mean (p_student − p_teacher)² over the pixels with H(p_student) ≥ h(t).

    H is given as a fraction of ln K.
    """

    author_settings: ClassVar[AuthorSettings] = {
        "la": {"train.steps": 8000, "methods.acmt.rampup": 0.75}
    }

    class Params(MeanTeacherBase.Params, frozen=True):
        """Settings of AC-MT."""

        consistency_weight: NonNegative = 0.1  # λ at the end of its ramp
        rampup: NonNegative = 1.0  # share of the run over which λ rises
        entropy_threshold: Fraction = 0.75  # h at the start of the run
        # h at the end of the run; 0.6 in the paper, where the threshold falls instead.
        final_entropy_threshold: Fraction = 0.95

    params: Params

    def losses(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        params = self.params
        weak = require_unlabeled(batch.unlabeled).weak
        log_labeled, log_unlabeled = forward_concat(self.student, batch.labeled.image, weak)
        target = self.teacher_probabilities(weak)
        threshold = self.threshold(step) * math.log(self.task.classes)
        doubtful = entropy(log_unlabeled.detach()) >= threshold

        labeled = self.supervised_loss(log_labeled, batch.labeled.label)
        consistency = masked_mean(squared_difference(log_unlabeled.exp(), target), doubtful)
        ramp = sigmoid_ramp(step, params.rampup * self.task.steps)
        return {
            "total": labeled + params.consistency_weight * ramp * consistency,
            "labeled": labeled,
            "consistency": consistency,
            "kept": doubtful.float().mean(),
        }

    def threshold(self, step: Tensor) -> Tensor | float:
        """Return h at `step`, as a fraction of the largest possible entropy."""
        first, last = self.params.entropy_threshold, self.params.final_entropy_threshold
        return first + (last - first) * sigmoid_ramp(step, self.task.steps)
