"""CRKD: semi-supervised segmentation by cross reliable knowledge distillation.

An unlabelled image is seen three ways: weakly augmented by the teacher (pseudo-label ŷ and confidence c), strongly augmented
(student stream s), and weakly augmented with perturbed features (student stream fp). Both streams learn the pseudo-label, and
at every pixel the stream nearer to it teaches the other.

Letters: B batch, K classes, F features, *S two or three spatial axes; L labelled, U unlabelled images in a batch.
"""

from typing import Annotated

import msgspec
import torch
from torch import Tensor

from crkd_cli.augment.mix import draw_swap, swap
from crkd_cli.config import Fraction, NonNegative, Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.align import Shares, align
from crkd_cli.losses.contrast import class_means, contrast, sample
from crkd_cli.losses.distill import feature_distillation, low_entropy_consistency, pixel_distillation, reliability
from crkd_cli.losses.pixel import log_probabilities, probabilities
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method, Task, fit, given
from crkd_cli.models.blocks import drop_channels
from crkd_cli.models.ema import Ema
from crkd_cli.models.projection import Projection
from crkd_cli.schedules import sigmoid_ramp

UNLABELED = ("pseudo", "pixel", "feature", "semantic", "entropy")    # terms that need the unlabelled images


@METHODS.register
class Crkd(Method):
    """L = L_sup + λ_ps L_ps + r(t) [λ_p CPKD + λ_f CFKD + λ_c CSD + λ_e LEC]. A weight of 0 switches its term off."""

    strong_views = 1

    class Params(Strict, frozen=True):
        confidence: Fraction = 0.8             # τ: pixels below do not count
        alignment: bool = True                 # of the pseudo-labels' class shares with the labels': else they starve or flood
        pseudo: NonNegative = 1.0              # λ_ps, of ½ (cross entropy + Dice) on the pseudo-label
        warmup: Fraction = 0.2                 # share of the run on labelled images alone, before the teacher is worth hearing
        pseudo_ramp: Fraction = 0.2            # share of the run over which λ_ps rises after that
        pixel: NonNegative = 1.0               # λ_p, CPKD
        feature: NonNegative = 0.1             # λ_f, CFKD
        semantic: NonNegative = 0.1            # λ_c, CSD
        entropy: NonNegative = 0.1             # λ_e, LEC
        start: Fraction = 0.4                  # share of the run before r(t) starts; r is 0 until then
        ramp: Fraction = 0.3                   # T_r as a share of the run
        teacher_decay: Fraction = 0.99         # of the teacher's moving average; 0: the student itself teaches
        drop: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.5    # channel dropout of stream fp, on every encoder level
        temperature: Annotated[float, msgspec.Meta(gt=0.0)] = 1.0     # T of CSD
        samples: Annotated[int, msgspec.Meta(ge=1)] = 256             # CSD samples per stream and batch
        true_positives: bool = True            # CSD anchors must be predicted right

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params)
        self.teacher = Ema(self.student, params.teacher_decay)
        self.projection = Projection(self.student.features)
        self.labeled, self.guessed = Shares(task.classes), Shares(task.classes)

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        params, weights = self.params, self.weights(step)
        if params.alignment:
            self.labeled.follow(self._members(batch.labeled.label))
        if not any(weights[name] for name in UNLABELED):
            labeled = fit(log_probabilities(self.student(batch.labeled.image)), batch.labeled.label)
            return {"total": labeled, "labeled": labeled}
        unlabeled = given(batch.unlabeled)
        label, weak, strong = batch.labeled.label, unlabeled.weak, unlabeled.strong[0]
        confidence, pseudo = self.pseudo_label(weak)
        partner, box = draw_swap(weak.shape, weak.device)
        weak, strong, confidence, pseudo = (swap(t, partner, box) for t in (weak, strong, confidence, pseudo))
        keep = confidence >= params.confidence

        # One pass for the three streams; the perturbed one leaves the others after the encoder.
        sizes = [len(label), len(strong), len(weak)]
        drop = torch.zeros(sum(sizes), device=weak.device)
        drop[-len(weak) :] = params.drop
        pyramid = self.student.encode(torch.cat([batch.labeled.image, strong, weak]))
        features = self.student.decode([drop_channels(level, drop) for level in pyramid])
        features_l, features_s, features_fp = torch.split(features, sizes)
        log_l, log_s, log_fp = torch.split(log_probabilities(self.student.head(features)), sizes)

        terms = {
            "labeled": fit(log_l, label),
            "pseudo": 0.5 * (fit(log_s, pseudo, keep) + fit(log_fp, pseudo, keep)),
        }
        by_s, by_fp = reliability(log_s, log_fp, pseudo, keep)
        if weights["pixel"]:
            terms["pixel"] = pixel_distillation(log_s, log_fp, by_s, by_fp)
        if weights["feature"]:
            terms["feature"] = feature_distillation(features_s, features_fp, by_s, by_fp)
        if weights["semantic"]:
            terms["semantic"] = self.semantic((features_l, features_s, features_fp), log_l, label, confidence, pseudo)
        if weights["entropy"]:
            terms["entropy"] = low_entropy_consistency(log_s, log_fp)
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return {"total": total, **terms, "kept": keep.float().mean(), **self._shares(pseudo)}

    @torch.no_grad()
    def pseudo_label(self, weak: Tensor) -> tuple[Tensor, Tensor]:
        """weak [U, C, *S] → confidence [U, *S] float32 and pseudo-label [U, *S] int64 of the teacher, in evaluation mode."""
        p = probabilities(self.teacher.network(weak))
        if self.params.alignment:
            self.guessed.follow(p)
            p = align(p, self.labeled.mean, self.guessed.mean)
        confidence, pseudo = p.max(1)
        return confidence, pseudo

    def semantic(
        self, features: tuple[Tensor, Tensor, Tensor], log_l: Tensor, label: Tensor, confidence: Tensor, pseudo: Tensor
    ) -> Tensor:
        """CSD: anchors from the labelled stream, positives and negatives from disjoint random halves of s and fp."""
        classes, number = self.task.classes, self.params.samples
        predicted = log_l.max(1).indices    # on a CPU ten times faster than argmax
        right = predicted == label if self.params.true_positives else torch.ones_like(label, dtype=torch.bool)
        sure = confidence >= class_means(confidence, pseudo, classes)[pseudo]
        order = torch.rand(label.shape, device=label.device)
        halves = torch.rand(pseudo.shape, device=pseudo.device)
        of_s = halves < 0.5
        samples = [
            sample(features[0], predicted, right, order, classes, number),
            sample(features[1], pseudo, sure & of_s, halves, classes, number),
            sample(features[2], pseudo, sure & ~of_s, halves, classes, number),
        ]
        projected = torch.split(self.projection(torch.cat([s.features for s in samples])), [len(s.features) for s in samples])
        anchors, *unlabeled = samples
        others = type(anchors)(*(torch.cat(parts) for parts in zip(*unlabeled, strict=True)))
        return contrast(projected[0], torch.cat(projected[1:]), anchors, others, self.params.temperature)

    def weights(self, step: int) -> dict[str, float]:
        """The factor of every term at `step`. Terms of weight 0 are not computed."""
        params = self.params
        r = self._ramp(step, params.start, params.ramp)
        pseudo = params.pseudo * self._ramp(step, params.warmup, params.pseudo_ramp)
        distilled = {"pixel": params.pixel, "feature": params.feature, "semantic": params.semantic, "entropy": params.entropy}
        return {"labeled": 1.0, "pseudo": pseudo, **{name: r * weight for name, weight in distilled.items()}}

    def after_step(self, step: int) -> None:
        self.teacher.update(self.student, step)

    def _ramp(self, step: int, start: float, length: float) -> float:
        """0 before `start`, then up to 1 over `length`, both shares of the run."""
        since = step - start * self.task.steps
        return sigmoid_ramp(since, length * self.task.steps) if since >= 0 else 0.0

    def _members(self, label: Tensor) -> Tensor:
        """label [B, *S] → [B, K, *S], 1 where the pixel is of the class."""
        classes = torch.arange(self.task.classes, device=label.device).view(-1, *[1] * (label.ndim - 1))
        return label.unsqueeze(1) == classes

    def _shares(self, pseudo: Tensor) -> dict[str, Tensor]:
        """Share of every foreground class in the pseudo-label: a collapse of the foreground shows here first."""
        return {f"share_{k}": (pseudo == k).float().mean() for k in range(1, self.task.classes)}
