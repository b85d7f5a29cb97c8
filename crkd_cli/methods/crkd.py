"""CRKD: semi-supervised segmentation by cross reliable knowledge distillation.

Repository eeaesa/CRKD, 2025; it cites no paper.

The student sees every unlabeled image in two streams: strongly augmented, and weakly augmented
with perturbed features. Both streams learn the pseudo-label ŷ that a teacher with confidence c
gives the weakly augmented image, and at every pixel the stream that is nearer to ŷ teaches the
other.

Shapes: L labeled and U unlabeled images, K classes, F features, *S spatial axes (two or three).
"""

from functools import partial
from typing import Annotated, ClassVar, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from crkd_cli.augment.mix import draw_swap, swap
from crkd_cli.config import AboveZero, Fraction, NonNegative, Size, Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.contrast import Samples, class_means, concat, contrast, sample
from crkd_cli.losses.dice import DiceClasses, dice_loss
from crkd_cli.losses.distill import (
    feature_distillation,
    low_entropy_consistency,
    pixel_distillation,
    reliability,
)
from crkd_cli.losses.pixel import log_probabilities, probabilities
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import (
    AuthorSettings,
    Method,
    PseudoLabel,
    Task,
    class_shares,
    require_unlabeled,
)
from crkd_cli.models.blocks import drop_channels
from crkd_cli.models.ema import Ema
from crkd_cli.models.projection import Projection
from crkd_cli.schedules import sigmoid_ramp


class Streams(NamedTuple):
    """One tensor for each stream of the student, [L, …], [U, …] and [U, …]."""

    labeled: Tensor
    strong: Tensor
    perturbed: Tensor


@METHODS.register
class Crkd(Method):
    """L = L_sup + λ_ps L_ps + r(t) [λ_p CPKD + λ_f CFKD + λ_c CSD + λ_e LEC].

    L_ps is the Dice loss on confident pixels, averaged over both streams. A weight of 0 switches
    its term off.
    """

    strong_views = 1
    author_settings: ClassVar[AuthorSettings] = {"la": {"methods.crkd.dice_classes": "foreground"}}

    class Params(Strict, frozen=True):
        """Settings of CRKD."""

        confidence: Fraction = 0.8  # τ: pixels whose c is lower do not count
        dice_classes: DiceClasses = "all"  # classes of the Dice losses
        pseudo_weight: NonNegative = 1.0  # λ_ps
        # Chosen by the gradients of the terms: those of CPKD and LEC are short and decrease the
        # loss on validation patients; those of CFKD and CSD are several times as long and do not
        # (docs/experiments.md).
        pixel_weight: NonNegative = 1.0  # λ_p, of CPKD
        feature_weight: NonNegative = 0.01  # λ_f, of CFKD
        semantic_weight: NonNegative = 0.01  # λ_c, of CSD
        entropy_weight: NonNegative = 1.0  # λ_e, of LEC
        rampup: NonNegative = 1.0  # share of the run over which r(t) rises to 1
        ema_decay: Fraction = 0.99  # decay of the teacher's moving average; 0 copies the student
        # Channel dropout of the perturbed features, at every level of the encoder.
        feature_dropout: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.5
        temperature: AboveZero = 1.0  # T of CSD
        contrast_samples: Size = 256  # of CSD, per stream and batch
        true_positive_anchors: bool = True  # CSD anchors must be predicted correctly

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params)
        # Without dropout, the pseudo-labels are those of the network that will predict.
        self.teacher = Ema(self.student, params.ema_decay, dropout=False)
        self.projection = Projection(self.student.features)

    def losses(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        label, unlabeled = batch.labeled.label, require_unlabeled(batch.unlabeled)
        weak, strong = unlabeled.weak, unlabeled.strong[0]
        confidence, pseudo_label = self.pseudo_label(weak)
        shares = class_shares(pseudo_label, self.task.classes)
        partner, box = draw_swap(weak.shape, weak.device)
        weak, strong, confidence, pseudo_label = (
            swap(x, partner, box) for x in (weak, strong, confidence, pseudo_label)
        )
        target = PseudoLabel(confidence, pseudo_label)
        keep = confidence >= self.params.confidence

        features, log_p = self.forward_streams(batch.labeled.image, strong, weak)
        dice = partial(dice_loss, classes=self.params.dice_classes)
        # Classes without a pixel to keep, as all but the first at the start, must not be unlearned.
        by_stream = [
            dice(x.exp(), pseudo_label, keep, skip_absent=True)
            for x in (log_p.strong, log_p.perturbed)
        ]
        terms = {
            "labeled": self.supervised_loss(log_p.labeled, label, dice=dice),
            "pseudo": torch.stack(by_stream).mean(),
            **self.distillation(features, log_p, label, target, keep),
        }
        weights = self.weights(step)
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return {"total": total, **terms, "kept": keep.float().mean(), **shares}

    @torch.no_grad()
    def pseudo_label(self, weak: Tensor) -> PseudoLabel:
        """Label weakly augmented images [U, C, *S] with the teacher.

        In training the teacher normalizes them by their own statistics.
        """
        return PseudoLabel.from_probabilities(probabilities(self.teacher.network(weak)))

    def forward_streams(
        self, labeled: Tensor, strong: Tensor, weak: Tensor
    ) -> tuple[Streams, Streams]:
        """Return features [·, F, *S] and log-probabilities [·, K, *S] of the three streams.

        One pass serves all of them; the features of the weak images are perturbed on the way
        from the encoder to the decoder.
        """
        sizes = [len(labeled), len(strong), len(weak)]
        dropout = torch.zeros(sum(sizes), device=weak.device)
        dropout[-len(weak) :].fill_(self.params.feature_dropout)
        pyramid = self.student.encode(torch.cat([labeled, strong, weak]))
        features = self.student.decode([drop_channels(level, dropout) for level in pyramid])
        log_p = log_probabilities(self.student.head(features))
        return Streams(*torch.split(features, sizes)), Streams(*torch.split(log_p, sizes))

    def distillation(
        self, features: Streams, log_p: Streams, label: Tensor, target: PseudoLabel, keep: Tensor
    ) -> dict[str, Tensor]:
        """Compute the terms between the streams whose weight is not 0."""
        params = self.params
        teaches = reliability(log_p.strong, log_p.perturbed, target.label, keep)
        terms = {}
        if params.pixel_weight:
            terms["pixel"] = pixel_distillation(log_p.strong, log_p.perturbed, *teaches)
        if params.feature_weight:
            terms["feature"] = feature_distillation(features.strong, features.perturbed, *teaches)
        if params.semantic_weight:
            terms["semantic"] = self.semantic(features, log_p.labeled, label, target)
        if params.entropy_weight:
            terms["entropy"] = low_entropy_consistency(log_p.strong, log_p.perturbed)
        return terms

    def semantic(
        self, features: Streams, log_labeled: Tensor, label: Tensor, target: PseudoLabel
    ) -> Tensor:
        """Compute CSD: labeled anchors against unlabeled features of both streams."""
        anchors = self.sample_labeled(features.labeled, log_labeled, label)
        others = self.sample_unlabeled(features.strong, features.perturbed, target)
        projected = self.projection(torch.cat([anchors.features, others.features]))
        projected_anchors, projected_others = torch.split(
            projected, [len(anchors.features), len(others.features)]
        )
        temperature = self.params.temperature
        return contrast(projected_anchors, projected_others, anchors, others, temperature)

    def sample_labeled(self, features: Tensor, log_p: Tensor, label: Tensor) -> Samples:
        """Sample anchors from labeled pixels, by their predicted class."""
        predicted = log_p.max(1).indices  # argmax() is ten times slower on a CPU
        if self.params.true_positive_anchors:
            eligible = predicted == label  # false at ignored pixels
        else:
            eligible = label < self.task.classes
        order = torch.rand(label.shape, device=label.device)
        number = self.params.contrast_samples
        return sample(features, predicted, eligible, order, self.task.classes, number)

    def sample_unlabeled(self, strong: Tensor, perturbed: Tensor, target: PseudoLabel) -> Samples:
        """Sample both streams, from disjoint random halves of the certain pixels.

        A pixel is certain if its confidence is at least the mean of its class.
        """
        classes, number = self.task.classes, self.params.contrast_samples
        confidence, label = target
        certain = confidence >= class_means(confidence, label, classes)[label]
        order = torch.rand(label.shape, device=label.device)
        lower_half = order < 0.5
        return concat(
            sample(strong, label, certain & lower_half, order, classes, number),
            sample(perturbed, label, certain & ~lower_half, order, classes, number),
        )

    def weights(self, step: Tensor) -> dict[str, Tensor | float]:
        """Return the factor of every term at `step`."""
        params = self.params
        ramp = sigmoid_ramp(step, params.rampup * self.task.steps)
        return {
            "labeled": 1.0,
            "pseudo": params.pseudo_weight,
            "pixel": ramp * params.pixel_weight,
            "feature": ramp * params.feature_weight,
            "semantic": ramp * params.semantic_weight,
            "entropy": ramp * params.entropy_weight,
        }

    def after_step(self, step: Tensor) -> None:
        self.teacher.update(self.student, step)

    @property
    def predictor(self) -> nn.Module:
        return self.teacher.network
