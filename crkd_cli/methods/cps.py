"""CPS (Chen, Yuan, Zeng and Wang, "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021), as SSL4MIS
applies it to medical images: two networks that began differently give each other pseudo-labels.
"""

from typing import ClassVar

from torch import Tensor, nn

from crkd_cli.config import NonNegative, Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.pixel import cross_entropy, masked_mean
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import (
    AuthorSettings,
    Method,
    Task,
    forward_concat,
    require_unlabeled,
    supervised_loss,
)
from crkd_cli.models.blocks import reinitialize_convs
from crkd_cli.schedules import sigmoid_ramp


@METHODS.register
class Cps(Method):
    """L = Σ_i L_sup,i + λ(t) [CE(p_1, ŷ_2) + CE(p_2, ŷ_1)] over all unlabeled pixels. The first network predicts."""

    author_settings: ClassVar[AuthorSettings] = {"acdc": {"train.steps": 30000}}

    class Params(Strict, frozen=True):
        consistency_weight: NonNegative = 0.1  # λ at the end of its ramp
        rampup: NonNegative = 1.0  # share of the run over which λ rises

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params)
        self.other = task.network()
        if task.dims == 3:  # as released; in 2D the two differ by the draw alone
            reinitialize_convs(self.student, nn.init.kaiming_normal_)
            reinitialize_convs(self.other, nn.init.xavier_normal_)

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        weak, label = require_unlabeled(batch.unlabeled).weak, batch.labeled.label
        log_l, log_u = forward_concat(self.student, batch.labeled.image, weak)
        other_l, other_u = forward_concat(self.other, batch.labeled.image, weak)
        # Largest and its place in one pass: on a CPU ten times faster than argmax.
        pseudo, other = (log_p.detach().max(1).indices for log_p in (log_u, other_u))
        labeled = supervised_loss(log_l, label) + supervised_loss(other_l, label)
        crossed = masked_mean(cross_entropy(log_u, other), None) + masked_mean(
            cross_entropy(other_u, pseudo), None
        )
        weight = self.params.consistency_weight * sigmoid_ramp(
            step, self.params.rampup * self.task.steps
        )
        shares = {
            "share_agreed": (pseudo == other).float().mean(),
            "share_foreground": (pseudo > 0).float().mean(),
        }
        return {
            "total": labeled + weight * crossed,
            "labeled": labeled,
            "pseudo": crossed,
            **shares,
        }
