"""UniMatch: the confident prediction on a weak view teaches three perturbed ones.

L. Yang, L. Qi, L. Feng, W. Zhang and Y. Shi, "Revisiting Weak-to-Strong Consistency in
Semi-Supervised Semantic Segmentation", CVPR 2023. In the form that its authors apply to ACDC.

The perturbed predictions are those for two strong views, each with a CutMix box of a mixing
partner, and the one from perturbed features of the weak view.
"""

from typing import Annotated, ClassVar

import msgspec
import torch
from torch import Tensor

from crkd_cli.augment.mix import draw_mix, mix
from crkd_cli.config import Fraction, Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import DiceClasses, dice_loss
from crkd_cli.losses.pixel import probabilities
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import (
    AuthorSettings,
    Method,
    PseudoLabel,
    class_shares,
    eval_mode,
    forward_concat,
    forward_head,
    require_unlabeled,
)
from crkd_cli.models.blocks import append_dropped


@METHODS.register
class UniMatch(Method):
    """L = ½ (L_sup + ½ L_strong + ½ L_fp), with Dice losses on confident pixels.

    L_strong is the mean over both strong views, L_fp the loss with perturbed features.
    """

    unlabeled_streams = 2
    strong_views = 2
    author_settings: ClassVar[AuthorSettings] = {
        "acdc": {"train.steps": 30000},  # 300 epochs: 30,900 with 3 labeled patients
        "la": {"methods.unimatch.dice_classes": "foreground"},  # as run by CrossMatch's authors
    }

    class Params(Strict, frozen=True):
        """Settings of UniMatch."""

        confidence: Fraction = 0.95  # τ: pixels whose confidence is lower do not count
        # Channel dropout of the perturbed features, at every level of the encoder.
        feature_dropout: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.5
        dice_classes: DiceClasses = "all"  # classes of the Dice losses

    params: Params

    def losses(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        images, partners = require_unlabeled(batch.unlabeled), require_unlabeled(batch.partners)
        boxes = [draw_mix(images.weak.shape, images.weak.device) for _ in images.strong]
        with torch.no_grad(), eval_mode(self.student):
            p_partners = probabilities(self.student(partners.weak))
        partner_target = PseudoLabel.from_probabilities(p_partners)
        views = [
            mix(image, partner, box)
            for image, partner, box in zip(images.strong, partners.strong, boxes, strict=True)
        ]
        log_labeled, log_weak, log_perturbed = self.forward_perturbed(
            batch.labeled.image, images.weak
        )
        target = PseudoLabel.from_probabilities(log_weak.detach().exp())

        by_view = []
        for log_p, box in zip(forward_concat(self.student, *views), boxes, strict=True):
            by_view.append(self.target_loss(log_p, target.cutmix(partner_target, box)))
        labeled = self.supervised_loss(log_labeled, batch.labeled.label, dice=self.dice)
        pseudo = torch.stack(by_view).mean()
        feature = self.target_loss(log_perturbed, target)
        keep = target.confidence >= self.params.confidence
        return {
            "total": 0.5 * (labeled + 0.5 * pseudo + 0.5 * feature),
            "labeled": labeled,
            "pseudo": pseudo,
            "feature": feature,
            "kept": keep.float().mean(),
            **class_shares(target.label, self.task.classes, keep),
        }

    def target_loss(self, log_p: Tensor, target: PseudoLabel) -> Tensor:
        """Compute the Dice loss of log_p [B, K, *S] where the target is confident."""
        return self.dice(log_p.exp(), target.label, target.confidence >= self.params.confidence)

    def dice(self, p: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Compute the Dice loss over the configured classes."""
        return dice_loss(p, target, mask, classes=self.params.dice_classes)

    def forward_perturbed(self, labeled: Tensor, weak: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute log-probabilities for labeled images and for weak views, in one pass.

        As published, the labeled images are perturbed as well, for the statistics of batch norm.

        Returns:
            Log-probabilities of the labeled images, of the weak views, and of the weak views
            with perturbed features.
        """
        rate = self.params.feature_dropout
        pyramid = self.student.encode(torch.cat([labeled, weak]))
        pyramid = [append_dropped(level, 0, [rate]) for level in pyramid]
        log_p = forward_head(self.student, self.student.decode(pyramid))
        sizes = [len(labeled), len(weak), len(labeled), len(weak)]
        log_labeled, log_weak, _, log_perturbed = torch.split(log_p, sizes)
        return log_labeled, log_weak, log_perturbed
