"""BCP: boxes are pasted between labeled and unlabeled images, in both directions.

Y. Bai, D. Chen, Q. Li, W. Shen and Y. Wang, "Bidirectional Copy-Paste for Semi-Supervised Medical
Image Segmentation", CVPR 2023.

The labels are pasted like the images; for the unlabeled part they are the pseudo-labels of the
student's moving average. In a warm-up before that, labeled images are pasted into each other.

Shapes: L labeled and U unlabeled images, C channels, K classes, *S spatial axes (two or three).
"""

from typing import ClassVar

import torch
from torch import Tensor

from crkd_cli.augment.mix import draw_box, mix
from crkd_cli.config import AboveZero, Fraction, NonNegative, Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.components import largest_component
from crkd_cli.losses.dice import dice_loss
from crkd_cli.losses.pixel import log_probabilities
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import (
    AuthorSettings,
    Method,
    Task,
    class_shares,
    require_unlabeled,
)
from crkd_cli.models.ema import Ema

BOX_SIDE = 2 / 3  # as a fraction of the image
# On LA: 2,000 steps of warm-up, then 15,000 in which the learning rate drops every 2,500.
LA_WARMUP, LA_STEPS, LA_DROP_EVERY = 2000, 17000, 2500
WARMUP, SELF_TRAINING = 0, 1  # phases


@METHODS.register
class Bcp(Method):
    """L = Σ over both mixed images of L(labeled region) + α L(pseudo-labeled region)."""

    author_settings: ClassVar[AuthorSettings] = {
        "acdc": {  # 10,000 steps of warm-up, then 30,000
            "train.steps": 40000,
            "train.lr_schedule": "constant",
        },
        "la": {
            "train.steps": LA_STEPS,
            "data.labeled_batch_size": 4,
            "data.unlabeled_batch_size": 4,
            "train.lr_schedule": "step",
            "train.lr_milestones": [
                round((LA_WARMUP + number * LA_DROP_EVERY) / LA_STEPS, 5) for number in range(1, 6)
            ],
            "methods.bcp.warmup": 0.118,
            "methods.bcp.average_regions": False,
            "methods.bcp.squared_dice": False,
            "methods.bcp.batch_dice": False,
            "methods.bcp.dice_smooth": 1e-5,
        },
    }

    class Params(Strict, frozen=True):
        """Settings of BCP."""

        pseudo_weight: NonNegative = 0.5  # α
        warmup: Fraction = 0.25  # share of the run that trains on labeled images alone
        # Decay of the teacher's moving average. During the warm-up the teacher is a copy.
        ema_decay: Fraction = 0.99
        # In the warm-up, weight both regions equally; false: weight all pixels equally.
        average_regions: bool = True
        squared_dice: bool = True  # Dice with Σ p² in the denominator; false: Σ p
        batch_dice: bool = True  # Dice of the whole batch; false: mean over images
        dice_smooth: AboveZero = 1e-10  # ε of the Dice loss
        # Continue after the warm-up from its best weights on the validation cases; false: from
        # the last ones.
        restore_best: bool = True
        # Keep only the largest component of every class in pseudo-labels. Set to false where a
        # class consists of several objects.
        largest_component: bool = True

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params)
        self.teacher = Ema(self.student, params.ema_decay, dropout=True)
        self.warmup_steps = round(params.warmup * task.steps)

    def phase_at(self, step: int) -> int:
        return WARMUP if step < self.warmup_steps else SELF_TRAINING

    def losses(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        image, label = batch.labeled.image, batch.labeled.label
        box = draw_box(image.shape[2:], image.device, BOX_SIDE)
        if self.phase == WARMUP:
            labeled = self.warmup_loss(image, label, box)
            return {"total": labeled, "labeled": labeled}

        weak = require_unlabeled(batch.unlabeled).weak
        pseudo_label = self.pseudo_label(weak)
        count = _half(max(len(image), len(weak)))
        images, labels = halves(image, count), halves(label, count)
        unlabeled, pseudo_labels = halves(weak, count), halves(pseudo_label, count)
        # First an unlabeled box in labeled images, then the reverse.
        labeled_1, pseudo_1 = self.mixed_losses(
            images[0], labels[0], unlabeled[0], pseudo_labels[0], ~box
        )
        labeled_2, pseudo_2 = self.mixed_losses(
            images[1], labels[1], unlabeled[1], pseudo_labels[1], box
        )
        labeled, pseudo = labeled_1 + labeled_2, pseudo_1 + pseudo_2
        return {
            "total": labeled + self.params.pseudo_weight * pseudo,
            "labeled": labeled,
            "pseudo": pseudo,
            **class_shares(pseudo_label, self.task.classes),
        }

    def warmup_loss(self, image: Tensor, label: Tensor, box: Tensor) -> Tensor:
        """Compute the loss on every second labeled image with a box of the next one pasted in."""
        count = _half(len(image))
        mixed_image = mix(*halves(image, count), box)
        mixed_label = mix(*halves(label, count), box)
        log_p = log_probabilities(self.student(mixed_image))
        if not self.params.average_regions:
            return self.region_loss(log_p, mixed_label, torch.ones_like(box))
        outside = self.region_loss(log_p, mixed_label, ~box)
        return outside + self.region_loss(log_p, mixed_label, box)

    def mixed_losses(
        self,
        image: Tensor,
        label: Tensor,
        unlabeled: Tensor,
        pseudo_label: Tensor,
        region: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Paste the region [1, *S] of labeled images into unlabeled ones.

        Returns the losses inside the region, on labels, and outside it, on pseudo-labels.
        """
        log_p = log_probabilities(self.student(mix(unlabeled, image, region)))
        labeled = self.region_loss(log_p, label, region)
        return labeled, self.region_loss(log_p, pseudo_label, ~region)

    def region_loss(self, log_p: Tensor, label: Tensor, region: Tensor) -> Tensor:
        """Compute ½ (CE + Dice) of log_p [B, K, *S] against label [B, *S] in region [1, *S]."""
        return self.supervised_loss(log_p, label, region.expand_as(label), dice=self.dice)

    def dice(self, p: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Compute the Dice loss in the form that the authors use."""
        params = self.params
        return dice_loss(
            p,
            target,
            mask,
            squared=params.squared_dice,
            pooled=params.batch_dice,
            epsilon=params.dice_smooth,
        )

    @torch.no_grad()
    def pseudo_label(self, weak: Tensor) -> Tensor:
        """Label images [U, C, *S] with the teacher: [U, *S].

        Pixels outside the largest component of their class become background.
        """
        predicted: Tensor = self.teacher.network(weak).max(1).indices
        if not self.params.largest_component:
            return predicted
        classes = torch.arange(1, self.task.classes, device=weak.device)
        masks = predicted.unsqueeze(1) == classes.view(-1, *[1] * (weak.ndim - 2))  # [U, K − 1, *S]
        largest = largest_component(masks.flatten(0, 1)).view(masks.shape)
        return torch.where(largest.any(1), predicted, 0)

    def after_step(self, step: Tensor) -> None:
        # Step 0 of an average copies; the published average starts without a warm-up of its own.
        self.teacher.update(self.student, step * (step >= self.warmup_steps))

    @property
    def restore_best_after(self) -> int:
        return self.warmup_steps if self.params.restore_best else 0


def halves(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Split x [B, …] into its even and its odd samples, each repeated until there are `count`.

    The sample after the last one is the first. In this order, parts of a joint batch have parts
    of its halves.
    """
    even, odd = x[::2], x.roll(-1, 0)[::2]
    repeats = -(-count // len(even))
    return torch.cat([even] * repeats)[:count], torch.cat([odd] * repeats)[:count]


def _half(count: int) -> int:
    """Return half of `count`, rounded up."""
    return -(-count // 2)
