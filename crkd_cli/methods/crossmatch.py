"""CrossMatch (Zhao, Wang and Ding, "CrossMatch: Enhance Semi-Supervised Medical Image Segmentation With Perturbation Strategies
and Knowledge Distillation", IEEE Journal of Biomedical and Health Informatics 2024).

Strong views learn the pseudo-label of the weak view, with a box of a mixing partner in them (CutMix). Besides, answers from
features that were perturbed weakly and strongly learn the plain answer (teacher distillation), and those on a strong view learn
the ones of the same perturbation on the weak view (decoder distillation). One network, one decoder.
"""

import math
from functools import partial
from typing import Annotated, ClassVar, NamedTuple

import msgspec
import torch
from torch import Tensor

from crkd_cli.augment.mix import draw_mix, mix
from crkd_cli.config import Fraction, NonNegative, Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import DiceClasses, dice_loss
from crkd_cli.losses.pixel import probabilities
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import (
    AuthorSettings,
    Method,
    forward_head,
    require_unlabeled,
    supervised_loss,
)
from crkd_cli.models.blocks import drop_channels
from crkd_cli.schedules import sigmoid_ramp

Rate = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]


class Answer(NamedTuple):
    """What a target says: confidence [B, *S] and pseudo-label [B, *S], without a gradient."""

    confidence: Tensor
    pseudo: Tensor

    def mixed(self, other: "Answer", box: Tensor) -> "Answer":
        return Answer(
            mix(self.confidence, other.confidence, box), mix(self.pseudo, other.pseudo, box)
        )


def answer(p: Tensor) -> Answer:
    return Answer(*p.detach().max(1))


@METHODS.register
class CrossMatch(Method):
    """L = ½ (L_sup + ½ L_strong + λ [(1 − η) L_tkd + η L_dkd]), all but L_sup Dice on pixels whose target is confident."""

    unlabeled_streams = 2
    strong_views = 2
    author_settings: ClassVar[AuthorSettings] = {
        "acdc": {"train.steps": 30000, "train.optimizer": "nesterov"},
        "la": {
            "train.steps": 14000,
            "train.lr_horizon": 1.214,
            "train.optimizer": "adamw",
            "train.lr": 0.001,  # horizon 17,000
            "methods.crossmatch.confidence": 0.75,
            "methods.crossmatch.confidence_rampup": 1.214,
            "methods.crossmatch.log2_scaled": True,
            "methods.crossmatch.distillation_weight": 1.0,
            "methods.crossmatch.dice_classes": "foreground",
            "methods.crossmatch.dice_smooth": 1e-5,
        },
    }

    class Params(Strict, frozen=True):
        confidence: Fraction = 0.95  # τ: pixels below do not count
        confidence_rampup: NonNegative | None = (
            None  # share of the run over which τ rises to 1; none: it stays
        )
        log2_scaled: bool = (
            False  # τ times ln 2, as released for LA: at first nearly all pixels count
        )
        distillation_weight: NonNegative = 0.5  # λ
        decoder_share: Fraction = 0.3  # η, the decoder distillation's part of λ
        dice_classes: DiceClasses = "all"  # classes of the Dice losses
        dice_smooth: Annotated[float, msgspec.Meta(gt=0.0)] = 1e-4  # ε of the Dice losses
        weak_dropout: Rate = 0.25  # channel dropout of weakly perturbed features, on every level
        strong_dropout: Rate = 0.75  # of strongly perturbed ones

    params: Params

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        params = self.params
        images, partners = require_unlabeled(batch.unlabeled), require_unlabeled(batch.partners)
        boxes = [draw_mix(images.weak.shape, images.weak.device) for _ in images.strong]
        with torch.no_grad():
            plain = answer(probabilities(self.student(partners.weak)))
            of_partners = [
                plain,
                *map(answer, self.forward_perturbed(batch.labeled.image, partners.weak)[1][1:]),
            ]
        strong = [
            mix(own, other, box)
            for own, other, box in zip(images.strong, partners.strong, boxes, strict=True)
        ]
        log_l, of_weak = self.forward_perturbed(batch.labeled.image, images.weak)
        log_1, of_strong = self.forward_perturbed(*strong)

        own = [answer(p) for p in of_weak]
        first = own[0].mixed(of_partners[0], boxes[0])
        second = [
            mine.mixed(theirs, boxes[1]) for mine, theirs in zip(own, of_partners, strict=True)
        ]
        threshold = self.threshold(step)
        dice = partial(dice_loss, classes=params.dice_classes, epsilon=params.dice_smooth)

        def target_loss(*pairs: tuple[Tensor, Answer]) -> Tensor:
            """Mean over pairs of the Dice loss of p [B, K, *S] against its target, where that is confident."""
            return torch.stack(
                [dice(p, a.pseudo, a.confidence >= threshold) for p, a in pairs]
            ).mean()

        terms = {
            "labeled": supervised_loss(log_l, batch.labeled.label, dice=dice),
            "pseudo": target_loss((log_1.exp(), first), (of_strong[0], second[0])),
            "teacher": target_loss(
                *((p, own[0]) for p in of_weak[1:]), *((p, second[0]) for p in of_strong[1:])
            ),
            "decoder": target_loss(*zip(of_strong[1:], second[1:], strict=True)),
        }
        share = params.decoder_share
        distilled = (1.0 - share) * terms["teacher"] + share * terms["decoder"]
        total = 0.5 * (
            terms["labeled"] + 0.5 * terms["pseudo"] + params.distillation_weight * distilled
        )
        return {"total": total, **terms, "kept": (own[0].confidence >= threshold).float().mean()}

    def forward_perturbed(self, a: Tensor, b: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Log-probabilities for images a; probabilities for images b: plain, weakly and strongly perturbed. One pass."""
        rates = (self.params.weak_dropout, self.params.strong_dropout)
        pyramid = self.student.encode(torch.cat([a, b]))
        levels = [
            torch.cat([level, *(drop_channels(level[len(a) :], rate) for rate in rates)])
            for level in pyramid
        ]
        log_p = forward_head(self.student, self.student.decode(levels))
        return log_p[: len(a)], list(log_p[len(a) :].exp().chunk(3))

    def threshold(self, step: int) -> float:
        """τ at `step`."""
        params = self.params
        rise = (
            0.0
            if params.confidence_rampup is None
            else sigmoid_ramp(step, params.confidence_rampup * self.task.steps)
        )
        threshold = params.confidence + (1.0 - params.confidence) * rise
        return threshold * math.log(2.0) if params.log2_scaled else threshold
