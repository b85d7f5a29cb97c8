"""The lower bound: the network trained on the labeled cases alone."""

from functools import partial
from typing import ClassVar

from torch import Tensor

from crkd_cli.config import Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import DiceClasses, dice_loss
from crkd_cli.losses.pixel import log_probabilities
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import AuthorSettings, Method, supervised_loss


@METHODS.register
class Supervised(Method):
    """½ (cross entropy + Dice); unlabeled images are never read."""

    unlabeled_streams = 0
    author_settings: ClassVar[AuthorSettings] = {
        "la": {"methods.supervised.dice_classes": "foreground"}
    }

    class Params(Strict, frozen=True):
        dice_classes: DiceClasses = "all"  # classes of the Dice loss

    params: Params

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        logits = self.student(batch.labeled.image)
        return {
            "total": supervised_loss(
                log_probabilities(logits),
                batch.labeled.label,
                dice=partial(dice_loss, classes=self.params.dice_classes),
            )
        }
