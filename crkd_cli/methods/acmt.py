"""AC-MT (Xu, Wang, Lu, Luo, Yan, Zheng and Tong, "Ambiguity-selective consistency regularization for mean-teacher semi-supervised
medical image segmentation", Medical Image Analysis 2023): a mean teacher that is followed only where the student is in doubt.

In doubt means: its answer has much entropy. This is the first of the paper's four ways to select pixels (Ent).
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from crkd_cli.augment.intensity import noise
from crkd_cli.config import Fraction, NonNegative, Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.pixel import entropy, log_probabilities, masked_mean, squared_difference
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method, Published, Task, fit, given, together
from crkd_cli.models.ema import Ema
from crkd_cli.schedules import sigmoid_ramp


@METHODS.register
class AcMt(Method):
    """L = L_sup + λ(t) · mean (p_student − p_teacher)² over the pixels with H(p_student) ≥ h(t), H as a share of ln K."""

    published: ClassVar[Published] = {"la": {"train.steps": 8000}}

    class Params(Strict, frozen=True):
        consistency: NonNegative = 0.1     # λ at the end of its ramp
        ramp: NonNegative = 0.75           # share of the run over which λ rises
        doubt: Fraction = 0.75             # h at first
        doubt_end: Fraction = 0.95         # h at the end of the run; 0.6 in the paper, which relaxes it instead
        noise: NonNegative = 0.1           # σ of the noise on the teacher's images, cut at 2σ
        teacher_decay: Fraction = 0.99     # of the teacher's moving average

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params)
        self.params = params
        self.teacher = Ema(self.student, params.teacher_decay, stochastic=True)

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        weak = given(batch.unlabeled).weak
        log_l, log_u = together(self.student, batch.labeled.image, weak)
        with torch.no_grad():
            taught = log_probabilities(self.teacher.network(noise(weak, self.params.noise))).exp()
            doubtful = entropy(log_u) >= self.threshold(step) * math.log(self.task.classes)
        labeled = fit(log_l, batch.labeled.label)
        consistency = masked_mean(squared_difference(log_u.exp(), taught), doubtful)
        weight = self.params.consistency * sigmoid_ramp(step, self.params.ramp * self.task.steps)
        terms = {"labeled": labeled, "consistency": consistency, "kept": doubtful.float().mean()}
        return {"total": labeled + weight * consistency, **terms}

    def threshold(self, step: int) -> float:
        """h(t), as a share of the largest entropy."""
        first, last = self.params.doubt, self.params.doubt_end
        return first + (last - first) * sigmoid_ramp(step, self.task.steps)

    def after_step(self, step: int) -> None:
        self.teacher.update(self.student, step)
