"""The lower bound: the network trained on the labeled cases alone."""

from functools import partial
from typing import ClassVar

from torch import Tensor

from crkd_cli.config import Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import DiceClasses, dice_loss
from crkd_cli.losses.pixel import log_probabilities
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import AuthorSettings, Method


@METHODS.register
class Supervised(Method):
    """L = ½ (cross entropy + Dice). Unlabeled images are never read."""

    unlabeled_streams = 0
    author_settings: ClassVar[AuthorSettings] = {
        "la": {"methods.supervised.dice_classes": "foreground"}
    }

    class Params(Strict, frozen=True):
        """Settings of supervised training."""

        dice_classes: DiceClasses = "all"  # classes of the Dice loss

    params: Params

    def losses(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        log_p = log_probabilities(self.student(batch.labeled.image))
        dice = partial(dice_loss, classes=self.params.dice_classes)
        return {"total": self.supervised_loss(log_p, batch.labeled.label, dice=dice)}
