"""The lower bound: the network trained on the labelled cases alone."""

from functools import partial
from typing import ClassVar

from torch import Tensor

from crkd_cli.config import Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import DiceClasses, dice_loss
from crkd_cli.losses.pixel import log_probabilities
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method, Published, fit


@METHODS.register
class Supervised(Method):
    """½ (cross entropy + Dice); unlabelled images are never read."""

    unlabeled_streams = 0
    published: ClassVar[Published] = {"la": {"methods.supervised.dice": "foreground"}}

    class Params(Strict, frozen=True):
        dice: DiceClasses = "all"    # classes of the Dice loss

    params: Params

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        logits = self.student(batch.labeled.image)
        return {"total": fit(log_probabilities(logits), batch.labeled.label, dice=partial(dice_loss, classes=self.params.dice))}
