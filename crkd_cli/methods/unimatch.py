"""UniMatch (Yang, Qi, Feng, Zhang and Shi, "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation",
CVPR 2023), as its authors apply it to ACDC: the confident answer to a weak view teaches three perturbed ones.

Perturbed are two strong views, each with a box of a mixing partner (CutMix), and the features of the weak view.
"""

from functools import partial
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
    eval_mode,
    forward_concat,
    forward_head,
    require_unlabeled,
    supervised_loss,
)
from crkd_cli.models.blocks import drop_channels


@METHODS.register
class UniMatch(Method):
    """L = ½ (L_sup + ½ L_strong + ½ L_fp): Dice on pixels whose pseudo-label is confident. L_strong is the mean of two views."""

    unlabeled_streams = 2
    strong_views = 2
    author_settings: ClassVar[AuthorSettings] = {
        "acdc": {"train.steps": 30000},  # 300 epochs: 30,900 with 3 labeled patients
        "la": {
            "methods.unimatch.dice_classes": "foreground"
        },  # as CrossMatch's authors ran it there
    }

    class Params(Strict, frozen=True):
        confidence: Fraction = 0.95  # τ: pixels below do not count
        feature_dropout: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = (
            0.5  # channel dropout of the perturbed features, on every level
        )
        dice_classes: DiceClasses = "all"  # classes of the Dice losses

    params: Params

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        images, partners = require_unlabeled(batch.unlabeled), require_unlabeled(batch.partners)
        boxes = [draw_mix(images.weak.shape, images.weak.device) for _ in images.strong]
        with torch.no_grad(), eval_mode(self.student):
            of_partners = probabilities(self.student(partners.weak)).max(1)
        strong = [
            mix(own, other, box)
            for own, other, box in zip(images.strong, partners.strong, boxes, strict=True)
        ]
        log_l, log_w, log_fp = self.perturbed(batch.labeled.image, images.weak)
        answers = log_w.detach().exp().max(1)
        dice = partial(dice_loss, classes=self.params.dice_classes)
        by_view = []
        for log_p, box in zip(forward_concat(self.student, *strong), boxes, strict=True):
            confidence, pseudo = (
                mix(own, other, box) for own, other in zip(answers, of_partners, strict=True)
            )
            sure = confidence >= self.params.confidence
            by_view.append(dice(log_p.exp(), pseudo, sure))
        keep = answers.values >= self.params.confidence
        labeled = supervised_loss(log_l, batch.labeled.label, dice=dice)
        pseudo = torch.stack(by_view).mean()
        feature = dice(log_fp.exp(), answers.indices, keep)
        total = 0.5 * (labeled + 0.5 * pseudo + 0.5 * feature)
        shares = {
            f"share_{k}": (keep & (answers.indices == k)).float().mean()
            for k in range(1, self.task.classes)
        }
        return {
            "total": total,
            "labeled": labeled,
            "pseudo": pseudo,
            "feature": feature,
            "kept": keep.float().mean(),
            **shares,
        }

    def perturbed(self, labeled: Tensor, weak: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities for labeled images, weak views, and weak views with perturbed features, from one pass.

        Perturbed labeled images go with it for the statistics of batch norm, as published.
        """
        pyramid = self.student.encode(torch.cat([labeled, weak]))
        features = self.student.decode(
            [
                torch.cat([level, drop_channels(level, self.params.feature_dropout)])
                for level in pyramid
            ]
        )
        counts = [len(labeled), len(weak), len(labeled), len(weak)]
        log_l, log_w, _, log_fp = torch.split(forward_head(self.student, features), counts)
        return log_l, log_w, log_fp
