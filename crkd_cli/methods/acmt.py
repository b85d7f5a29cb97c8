"""AC-MT (Xu, Wang, Lu, Luo, Yan, Zheng and Tong, "Ambiguity-selective consistency regularization for mean-teacher semi-supervised
medical image segmentation", Medical Image Analysis 2023): a mean teacher that is followed only where the student is in doubt.

In doubt means: its answer has much entropy. This is the first of the paper's four ways to select pixels (Ent).
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
    MeanTeaching,
    forward_concat,
    require_unlabeled,
    supervised_loss,
)
from crkd_cli.schedules import sigmoid_ramp


@METHODS.register
class AcMt(MeanTeaching):
    """L = L_sup + λ(t) · mean (p_student − p_teacher)² over the pixels with H(p_student) ≥ h(t), H as a share of ln K."""

    author_settings: ClassVar[AuthorSettings] = {
        "la": {"train.steps": 8000, "methods.acmt.rampup": 0.75}
    }

    class Params(MeanTeaching.Params, frozen=True):
        consistency_weight: NonNegative = 0.1  # λ at the end of its ramp
        rampup: NonNegative = 1.0  # share of the run over which λ rises
        entropy_threshold: Fraction = 0.75  # h at first
        final_entropy_threshold: Fraction = (
            0.95  # h at the end of the run; 0.6 in the paper, which relaxes it instead
        )

    params: Params

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        weak = require_unlabeled(batch.unlabeled).weak
        log_l, log_u = forward_concat(self.student, batch.labeled.image, weak)
        taught = self.answer(weak)
        doubtful = entropy(log_u.detach()) >= self.threshold(step) * math.log(self.task.classes)
        labeled = supervised_loss(log_l, batch.labeled.label)
        consistency = masked_mean(squared_difference(log_u.exp(), taught), doubtful)
        weight = self.params.consistency_weight * sigmoid_ramp(
            step, self.params.rampup * self.task.steps
        )
        terms = {"labeled": labeled, "consistency": consistency, "kept": doubtful.float().mean()}
        return {"total": labeled + weight * consistency, **terms}

    def threshold(self, step: int) -> float:
        """h(t), as a share of the largest entropy."""
        first, last = self.params.entropy_threshold, self.params.final_entropy_threshold
        return first + (last - first) * sigmoid_ramp(step, self.task.steps)
