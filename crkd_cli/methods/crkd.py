"""CRKD: semi-supervised segmentation by cross reliable knowledge distillation.

An unlabeled image is seen three ways: weakly augmented by the teacher (pseudo-label ŷ and confidence c), strongly
augmented (student stream s), and weakly augmented with perturbed features (student stream fp). Both streams learn
the pseudo-label, and at every pixel the stream nearer to it teaches the other.

Letters: B batch, K classes, F features, *S two or three spatial axes; L labeled, U unlabeled images in a batch.
"""

from functools import partial
from typing import Annotated, ClassVar

import msgspec
import torch
from torch import Tensor, nn

from crkd_cli.augment.mix import draw_swap, swap
from crkd_cli.config import Fraction, NonNegative, Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.contrast import class_means, contrast, sample
from crkd_cli.losses.dice import DiceClasses, dice_loss
from crkd_cli.losses.distill import (
    feature_distillation,
    low_entropy_consistency,
    pixel_distillation,
    reliability,
)
from crkd_cli.losses.pixel import log_probabilities, probabilities
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import AuthorSettings, Method, Task, require_unlabeled, supervised_loss
from crkd_cli.models.blocks import drop_channels
from crkd_cli.models.ema import Ema
from crkd_cli.models.projection import Projection
from crkd_cli.schedules import sigmoid_ramp


@METHODS.register
class Crkd(Method):
    """L = L_sup + λ_ps L_ps + r(t) [λ_p CPKD + λ_f CFKD + λ_c CSD + λ_e LEC]. A weight of 0 switches its term off.

    L_ps is the Dice loss on confident pixels, the mean of both streams.
    """

    strong_views = 1
    author_settings: ClassVar[AuthorSettings] = {"la": {"methods.crkd.dice_classes": "foreground"}}

    class Params(Strict, frozen=True):
        confidence: Fraction = 0.8  # τ: pixels below do not count
        dice_classes: DiceClasses = "all"  # classes of the Dice losses
        pseudo_weight: NonNegative = 1.0  # λ_ps
        # By their gradients: those of CPKD and LEC are short and point down the loss on validation patients, those of CFKD and
        # CSD are several times as long and do not (docs/results.md).
        pixel_weight: NonNegative = 1.0  # λ_p, CPKD
        feature_weight: NonNegative = 0.01  # λ_f, CFKD
        semantic_weight: NonNegative = 0.01  # λ_c, CSD
        entropy_weight: NonNegative = 1.0  # λ_e, LEC
        rampup: NonNegative = 1.0  # share of the run over which r(t) rises to 1
        ema_decay: Fraction = (
            0.99  # of the teacher's moving average; 0: the student's weights as they are
        )
        feature_dropout: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = (
            0.5  # channel dropout of stream fp, on every level
        )
        temperature: Annotated[float, msgspec.Meta(gt=0.0)] = 1.0  # T of CSD
        contrast_samples: Annotated[int, msgspec.Meta(ge=1)] = (
            256  # CSD samples per stream and batch
        )
        true_positive_anchors: bool = True  # CSD anchors must be predicted right

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params)
        # Without dropout: its pseudo-labels are those of the network that will predict.
        self.teacher = Ema(self.student, params.ema_decay, dropout=False)
        self.projection = Projection(self.student.features)

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        params, unlabeled = self.params, require_unlabeled(batch.unlabeled)
        label, weak, strong = batch.labeled.label, unlabeled.weak, unlabeled.strong[0]
        confidence, pseudo = self.pseudo_label(weak)
        shares = {f"share_{k}": (pseudo == k).float().mean() for k in range(1, self.task.classes)}
        partner, box = draw_swap(weak.shape, weak.device)
        weak, strong, confidence, pseudo = (
            swap(t, partner, box) for t in (weak, strong, confidence, pseudo)
        )
        keep = confidence >= params.confidence
        dice = partial(dice_loss, classes=params.dice_classes)

        # One pass for the three streams; the perturbed one leaves the others after the encoder.
        sizes = [len(label), len(strong), len(weak)]
        drop = torch.zeros(sum(sizes), device=weak.device)
        drop[-len(weak) :] = params.feature_dropout
        pyramid = self.student.encode(torch.cat([batch.labeled.image, strong, weak]))
        features = self.student.decode([drop_channels(level, drop) for level in pyramid])
        features_l, features_s, features_fp = torch.split(features, sizes)
        log_l, log_s, log_fp = torch.split(log_probabilities(self.student.head(features)), sizes)

        by_stream = [dice(log_p.exp(), pseudo, keep) for log_p in (log_s, log_fp)]
        terms = {
            "labeled": supervised_loss(log_l, label, dice=dice),
            "pseudo": torch.stack(by_stream).mean(),
        }
        by_s, by_fp = reliability(log_s, log_fp, pseudo, keep)
        if params.pixel_weight:
            terms["pixel"] = pixel_distillation(log_s, log_fp, by_s, by_fp)
        if params.feature_weight:
            terms["feature"] = feature_distillation(features_s, features_fp, by_s, by_fp)
        if params.semantic_weight:
            terms["semantic"] = self.semantic(
                (features_l, features_s, features_fp), log_l, label, confidence, pseudo
            )
        if params.entropy_weight:
            terms["entropy"] = low_entropy_consistency(log_s, log_fp)
        weights = self.weights(step)
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return {"total": total, **terms, "kept": keep.float().mean(), **shares}

    @torch.no_grad()
    def pseudo_label(self, weak: Tensor) -> tuple[Tensor, Tensor]:
        """Label weakly augmented images with the teacher, which normalizes them by their own statistics.

        weak [U, C, *S] → confidence [U, *S] float32 and pseudo-label [U, *S] int64.
        """
        confidence, pseudo = probabilities(self.teacher.network(weak)).max(1)
        return confidence, pseudo

    def semantic(
        self,
        features: tuple[Tensor, Tensor, Tensor],
        log_l: Tensor,
        label: Tensor,
        confidence: Tensor,
        pseudo: Tensor,
    ) -> Tensor:
        """CSD: anchors from the labeled stream, positives and negatives from disjoint random halves of s and fp."""
        classes, number = self.task.classes, self.params.contrast_samples
        predicted = log_l.max(1).indices  # on a CPU ten times faster than argmax
        right = (
            predicted == label
            if self.params.true_positive_anchors
            else torch.ones_like(label, dtype=torch.bool)
        )
        sure = confidence >= class_means(confidence, pseudo, classes)[pseudo]
        order = torch.rand(label.shape, device=label.device)
        halves = torch.rand(pseudo.shape, device=pseudo.device)
        of_s = halves < 0.5
        samples = [
            sample(features[0], predicted, right, order, classes, number),
            sample(features[1], pseudo, sure & of_s, halves, classes, number),
            sample(features[2], pseudo, sure & ~of_s, halves, classes, number),
        ]
        projected = torch.split(
            self.projection(torch.cat([s.features for s in samples])),
            [len(s.features) for s in samples],
        )
        anchors, *unlabeled = samples
        others = type(anchors)(*(torch.cat(parts) for parts in zip(*unlabeled, strict=True)))
        return contrast(
            projected[0], torch.cat(projected[1:]), anchors, others, self.params.temperature
        )

    def weights(self, step: int) -> dict[str, float]:
        """The factor of every term at `step`."""
        params = self.params
        r = sigmoid_ramp(step, params.rampup * self.task.steps)
        distilled = {
            "pixel": params.pixel_weight,
            "feature": params.feature_weight,
            "semantic": params.semantic_weight,
            "entropy": params.entropy_weight,
        }
        return {
            "labeled": 1.0,
            "pseudo": params.pseudo_weight,
            **{name: r * weight for name, weight in distilled.items()},
        }

    def after_step(self, step: int) -> None:
        self.teacher.update(self.student, step)

    @property
    def predictor(self) -> nn.Module:
        return self.teacher.network
