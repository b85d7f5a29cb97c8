"""CPS: two networks that start differently give each other pseudo-labels.

X. Chen, Y. Yuan, G. Zeng and J. Wang, "Semi-Supervised Semantic Segmentation with Cross Pseudo
Supervision", CVPR 2021. Applied to medical images as in SSL4MIS.
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
)
from crkd_cli.models.blocks import reinitialize_convs
from crkd_cli.schedules import sigmoid_ramp


@METHODS.register
class Cps(Method):
    """L = Σ_i L_sup,i + λ(t) [CE(p_1, ŷ_2) + CE(p_2, ŷ_1)] over all unlabeled pixels.

    The first network predicts.
    """

    author_settings: ClassVar[AuthorSettings] = {"acdc": {"train.steps": 30000}}

    class Params(Strict, frozen=True):
        """Settings of CPS."""

        consistency_weight: NonNegative = 0.1  # λ at the end of its ramp
        rampup: NonNegative = 1.0  # share of the run over which λ rises

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params)
        self.other = task.network()
        if task.dims == 3:  # as released; in 2D the two differ by their random weights alone
            reinitialize_convs(self.student, nn.init.kaiming_normal_)
            reinitialize_convs(self.other, nn.init.xavier_normal_)

    def losses(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        params = self.params
        image, label = batch.labeled.image, batch.labeled.label
        weak = require_unlabeled(batch.unlabeled).weak
        log_labeled_1, log_unlabeled_1 = forward_concat(self.student, image, weak)
        log_labeled_2, log_unlabeled_2 = forward_concat(self.other, image, weak)
        # max() instead of argmax(), which is ten times slower on a CPU.
        pseudo_label_1 = log_unlabeled_1.detach().max(1).indices
        pseudo_label_2 = log_unlabeled_2.detach().max(1).indices

        labeled = self.supervised_loss(log_labeled_1, label) + self.supervised_loss(
            log_labeled_2, label
        )
        pseudo_1 = masked_mean(cross_entropy(log_unlabeled_1, pseudo_label_2), None)
        pseudo_2 = masked_mean(cross_entropy(log_unlabeled_2, pseudo_label_1), None)
        pseudo = pseudo_1 + pseudo_2
        ramp = sigmoid_ramp(step, params.rampup * self.task.steps)
        return {
            "total": labeled + params.consistency_weight * ramp * pseudo,
            "labeled": labeled,
            "pseudo": pseudo,
            "share_agreed": (pseudo_label_1 == pseudo_label_2).float().mean(),
            "share_foreground": (pseudo_label_1 > 0).float().mean(),
        }
