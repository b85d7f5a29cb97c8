"""CrossMatch: weak-to-strong consistency with distillation between perturbed features.

B. Zhao, C. Wang and S. Ding, "CrossMatch: Enhance Semi-Supervised Medical Image Segmentation With
Perturbation Strategies and Knowledge Distillation", IEEE Journal of Biomedical and Health
Informatics 2024.

One network with one decoder predicts every image from its plain, its weakly perturbed and its
strongly perturbed features. Two strong views, with a CutMix box of a mixing partner in them, learn
the pseudo-label of the weak view. Perturbed predictions learn the plain one (teacher
distillation), and those on the second strong view learn the prediction with the same perturbation
on the weak view (decoder distillation).

Shapes: B images, K classes, *S spatial axes (two or three).
"""

import math
from typing import Annotated, ClassVar, Generic, NamedTuple, TypeVar

import msgspec
import torch
from torch import Tensor

from crkd_cli.augment.mix import draw_mix, mix
from crkd_cli.config import AboveZero, Fraction, NonNegative, Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import DiceClasses, dice_loss
from crkd_cli.losses.pixel import probabilities
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import (
    AuthorSettings,
    Method,
    PseudoLabel,
    forward_head,
    require_unlabeled,
)
from crkd_cli.models.blocks import append_dropped
from crkd_cli.schedules import sigmoid_ramp

Rate = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
T = TypeVar("T")


class ByPerturbation(NamedTuple, Generic[T]):
    """One value for each perturbation of the features."""

    plain: T
    weak: T
    strong: T


@METHODS.register
class CrossMatch(Method):
    """L = ½ (L_sup + ½ L_strong + λ [(1 − η) L_teacher + η L_decoder]).

    All terms but L_sup are Dice losses over the pixels whose target is confident.
    """

    unlabeled_streams = 2
    strong_views = 2
    author_settings: ClassVar[AuthorSettings] = {
        "acdc": {"train.steps": 30000, "train.optimizer": "nesterov"},
        "la": {
            "train.steps": 14000,
            "train.lr_horizon": 1.214,  # 17,000 steps
            "train.optimizer": "adamw",
            "train.lr": 0.001,
            "methods.crossmatch.confidence": 0.75,
            "methods.crossmatch.confidence_rampup": 1.214,
            "methods.crossmatch.log2_scaled": True,
            "methods.crossmatch.distillation_weight": 1.0,
            "methods.crossmatch.dice_classes": "foreground",
            "methods.crossmatch.dice_smooth": 1e-5,
        },
    }

    class Params(Strict, frozen=True):
        """Settings of CrossMatch."""

        confidence: Fraction = 0.95  # τ: pixels whose confidence is lower do not count
        # Share of the run over which τ rises to 1; none: τ is constant.
        confidence_rampup: NonNegative | None = None
        # Multiply τ by ln 2, as released for LA: at first nearly all pixels count.
        log2_scaled: bool = False
        distillation_weight: NonNegative = 0.5  # λ
        decoder_share: Fraction = 0.3  # η, the decoder distillation's part of λ
        dice_classes: DiceClasses = "all"  # classes of the Dice losses
        dice_smooth: AboveZero = 1e-4  # ε of the Dice losses
        weak_dropout: Rate = 0.25  # channel dropout of weakly perturbed features, at every level
        strong_dropout: Rate = 0.75  # channel dropout of strongly perturbed features

    params: Params

    def losses(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        labeled = batch.labeled
        images, partners = require_unlabeled(batch.unlabeled), require_unlabeled(batch.partners)
        boxes = [draw_mix(images.weak.shape, images.weak.device) for _ in images.strong]
        partner_targets = self.partner_targets(labeled.image, partners.weak)
        views = [
            mix(image, partner, box)
            for image, partner, box in zip(images.strong, partners.strong, boxes, strict=True)
        ]
        log_labeled, p_weak = self.forward_perturbed(labeled.image, images.weak)
        log_first, p_second = self.forward_perturbed(*views)

        targets = ByPerturbation(*(PseudoLabel.from_probabilities(p) for p in p_weak))
        first_target = targets.plain.cutmix(partner_targets.plain, boxes[0])
        mixed = [
            target.cutmix(partner, boxes[1])
            for target, partner in zip(targets, partner_targets, strict=True)
        ]
        second_targets = ByPerturbation(*mixed)
        pairs = {
            "pseudo": [(log_first.exp(), first_target), (p_second.plain, second_targets.plain)],
            "teacher": [
                (p_weak.weak, targets.plain),
                (p_weak.strong, targets.plain),
                (p_second.weak, second_targets.plain),
                (p_second.strong, second_targets.plain),
            ],
            "decoder": [
                (p_second.weak, second_targets.weak),
                (p_second.strong, second_targets.strong),
            ],
        }
        threshold = self.threshold(step)
        terms = {"labeled": self.supervised_loss(log_labeled, labeled.label, dice=self.dice)}
        for name in pairs:
            terms[name] = self.target_loss(pairs[name], threshold)
        kept = (targets.plain.confidence >= threshold).float().mean()
        return {"total": self.total(terms), **terms, "kept": kept}

    @torch.no_grad()
    def partner_targets(self, labeled: Tensor, weak: Tensor) -> ByPerturbation[PseudoLabel]:
        """Predict the targets of the mixing partners.

        As released, the plain one is from a separate pass, and the labeled images only take part
        for the statistics of batch norm.
        """
        plain = probabilities(self.student(weak))
        _, perturbed = self.forward_perturbed(labeled, weak)
        predictions = perturbed._replace(plain=plain)
        return ByPerturbation(*(PseudoLabel.from_probabilities(p) for p in predictions))

    def forward_perturbed(
        self, plain: Tensor, perturbed: Tensor
    ) -> tuple[Tensor, ByPerturbation[Tensor]]:
        """Predict two batches of images in one pass, the second one with every perturbation.

        Returns:
            Log-probabilities of `plain` and probabilities of `perturbed`.
        """
        count = len(plain)
        rates = (self.params.weak_dropout, self.params.strong_dropout)
        pyramid = self.student.encode(torch.cat([plain, perturbed]))
        pyramid = [append_dropped(level, count, rates) for level in pyramid]
        log_p = forward_head(self.student, self.student.decode(pyramid))
        return log_p[:count], ByPerturbation(*log_p[count:].exp().chunk(3))

    def target_loss(
        self, pairs: list[tuple[Tensor, PseudoLabel]], threshold: Tensor | float
    ) -> Tensor:
        """Average over (p [B, K, *S], target) pairs the Dice loss where the target is confident."""
        losses = [self.dice(p, target.label, target.confidence >= threshold) for p, target in pairs]
        return torch.stack(losses).mean()

    def dice(self, p: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Compute the Dice loss in the form that the authors use."""
        params = self.params
        return dice_loss(p, target, mask, classes=params.dice_classes, epsilon=params.dice_smooth)

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Add up the terms."""
        eta = self.params.decoder_share
        distillation = (1.0 - eta) * terms["teacher"] + eta * terms["decoder"]
        weight = self.params.distillation_weight
        return 0.5 * (terms["labeled"] + 0.5 * terms["pseudo"] + weight * distillation)

    def threshold(self, step: Tensor) -> Tensor | float:
        """Return τ at `step`."""
        params = self.params
        threshold: Tensor | float = params.confidence
        if params.confidence_rampup is not None:
            ramp = sigmoid_ramp(step, params.confidence_rampup * self.task.steps)
            threshold = threshold + (1.0 - params.confidence) * ramp
        return threshold * math.log(2.0) if params.log2_scaled else threshold
