"""BCP (Bai, Chen, Li, Shen and Wang, "Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation", CVPR 2023).

A box of an unlabeled image is pasted into a labeled one and the reverse; labels go with it, for the unlabeled part those of
the student's moving average. Before, the student learns from labeled images pasted into each other.
"""

from functools import partial
from typing import Annotated, ClassVar

import msgspec
import torch
from torch import Tensor

from crkd_cli.augment.mix import draw_box, mix
from crkd_cli.config import Fraction, NonNegative, Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.components import largest_component
from crkd_cli.losses.dice import dice_loss
from crkd_cli.losses.pixel import log_probabilities
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import AuthorSettings, Method, Task, require_unlabeled, supervised_loss
from crkd_cli.models.ema import Ema

SIDE = 2 / 3  # of the box, of the image's


@METHODS.register
class Bcp(Method):
    """L = Σ over the two mixed images of the loss on the labeled region + α the loss on the pseudo-labeled one."""

    author_settings: ClassVar[AuthorSettings] = {
        "acdc": {
            "train.steps": 40000,
            "train.lr_schedule": "constant",
        },  # 10,000 on labeled images, then 30,000
        "la": {  # 2,000 on labeled images, then 15,000, in which the learning rate falls every 2,500 steps
            "train.steps": 17000,
            "data.labeled_batch_size": 4,
            "data.unlabeled_batch_size": 4,
            "train.lr_schedule": "step",
            "train.lr_milestones": [round((2000 + 2500 * n) / 17000, 5) for n in range(1, 6)],
            "methods.bcp.warmup": 0.118,
            "methods.bcp.average_regions": False,
            "methods.bcp.squared_dice": False,
            "methods.bcp.batch_dice": False,
            "methods.bcp.dice_smooth": 1e-5,
        },
    }

    class Params(Strict, frozen=True):
        pseudo_weight: NonNegative = 0.5  # α
        warmup: Fraction = 0.25  # share of the run on labeled images alone
        ema_decay: Fraction = 0.99  # of the teacher's moving average; in the warm-up it is a copy
        average_regions: bool = (
            True  # in the warm-up each region counts as much as the other; false: each pixel
        )
        squared_dice: bool = True  # Dice with Σ p² in the denominator; false: Σ p
        batch_dice: bool = True  # Dice of the whole batch; false: the mean over images
        dice_smooth: Annotated[float, msgspec.Meta(gt=0.0)] = 1e-10  # ε of the Dice loss
        restore_best: bool = (
            True  # the warm-up ends with its best weights on validation; false: the last ones
        )
        largest_component: bool = True  # keep the largest component of every class; false where a class is several objects

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params)
        self.teacher = Ema(self.student, params.ema_decay, dropout=True)
        self.begin = round(params.warmup * task.steps)

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        images, label = batch.labeled.image, batch.labeled.label
        box = draw_box(images.shape[2:], images.device, SIDE)
        if step < self.begin:
            labeled = self.labeled_alone(images, label, box)
            return {"total": labeled, "labeled": labeled}
        weak = require_unlabeled(batch.unlabeled).weak
        pseudo = self.pseudo_label(weak)
        count = -(-max(len(images), len(weak)) // 2)
        by_region = []
        # First the labeled image around the unlabeled one's box, then the reverse.
        for region, mine, right, theirs, guess in zip(
            (~box, box), *(halves(t, count) for t in (images, label, weak, pseudo)), strict=True
        ):
            log_p = log_probabilities(self.student(mix(theirs, mine, region)))
            by_region.append(
                (self.region_loss(log_p, right, region), self.region_loss(log_p, guess, ~region))
            )
        labeled, taught = (torch.stack(terms).sum() for terms in zip(*by_region, strict=True))
        shares = {f"share_{k}": (pseudo == k).float().mean() for k in range(1, self.task.classes)}
        return {
            "total": labeled + self.params.pseudo_weight * taught,
            "labeled": labeled,
            "pseudo": taught,
            **shares,
        }

    def labeled_alone(self, images: Tensor, label: Tensor, box: Tensor) -> Tensor:
        """The loss on every second labeled image with a box of the next one."""
        (x, x_next), (y, y_next) = (halves(t, -(-len(t) // 2)) for t in (images, label))
        log_p, mixed = log_probabilities(self.student(mix(x, x_next, box))), mix(y, y_next, box)
        if not self.params.average_regions:
            return self.region_loss(log_p, mixed, torch.ones_like(box))
        return self.region_loss(log_p, mixed, ~box) + self.region_loss(log_p, mixed, box)

    def region_loss(self, log_p: Tensor, label: Tensor, region: Tensor) -> Tensor:
        """½ (CE + Dice) of log_p [B, K, *S] against label [B, *S] inside region [1, *S]."""
        params = self.params
        dice = partial(
            dice_loss,
            squared=params.squared_dice,
            pooled=params.batch_dice,
            epsilon=params.dice_smooth,
        )
        return supervised_loss(log_p, label, region.expand_as(label), dice=dice)

    @torch.no_grad()
    def pseudo_label(self, weak: Tensor) -> Tensor:
        """weak [U, C, *S] → the teacher's pseudo-label [U, *S]; what is not of its class's largest component is background."""
        pseudo: Tensor = self.teacher.network(weak).max(1).indices
        if not self.params.largest_component:
            return pseudo
        classes = torch.arange(1, self.task.classes, device=weak.device).view(
            -1, *[1] * (weak.ndim - 2)
        )
        by_class = pseudo.unsqueeze(1) == classes  # [U, K − 1, *S]
        kept = largest_component(by_class.flatten(0, 1)).view(by_class.shape).any(1)
        return torch.where(kept, pseudo, 0)

    def after_step(self, step: int) -> None:
        # Step 0 of an average copies; from 100 on the published average has no warm-up.
        self.teacher.update(self.student, 0 if step < self.begin else step)

    @property
    def restore_best_after(self) -> int:
        return self.begin if self.params.restore_best else 0


def halves(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """x [B, …] → its even and its odd samples, in that order so that parts of a joint batch have parts of its halves; the one
    after the last is the first. Both are repeated until there are `count`.
    """
    even, odd = (
        torch.cat([half] * -(-count // len(half)))[:count] for half in (x[::2], x.roll(-1, 0)[::2])
    )
    return even, odd
