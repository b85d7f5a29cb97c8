"""AD-MT: two teachers take turns, and each follows the student under its own perturbation.

Z. Zhao, Z. Wang, L. Wang, D. Yu, Y. Yuan and L. Zhou, "Alternate Diverse Teaching for
Semi-supervised Medical Image Segmentation", ECCV 2024.

While the first teacher is active, the student learns from unlabeled images with changed
intensities; while the second one is, from images with a box of another one (CutMix). Both teachers
label the weak view at every step; where they conflict, the student has a say.

Shapes: U unlabeled images, C channels, K classes, *S spatial axes (two or three).
"""

import math
import random
from bisect import bisect_right
from typing import ClassVar, Literal

import torch
from torch import Tensor

from crkd_cli.augment.mix import draw_cutmix, swap
from crkd_cli.config import Fraction, NonNegative, Positive, Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import dice_loss
from crkd_cli.losses.pixel import cross_entropy, entropy, log_probabilities, masked_mean
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import (
    AuthorSettings,
    Method,
    PseudoLabel,
    Task,
    class_shares,
    eval_mode,
    forward_concat,
    require_unlabeled,
)
from crkd_cli.models.ema import Ema
from crkd_cli.schedules import sigmoid_ramp

INTENSITY, CUTMIX = 0, 1  # phases, and the numbers of the teachers that are active in them


@METHODS.register
class AdMt(Method):
    """L = L_sup + λ(t) L_u, where L_u is Dice or cross entropy on confident pixels."""

    strong_views = 1
    author_settings: ClassVar[AuthorSettings] = {
        "acdc": {"train.steps": 30000},
        "la": {
            "train.steps": 15000,
            "methods.ad_mt.confidence": 0.8,
            "methods.ad_mt.pseudo_loss": "cross_entropy",
            "methods.ad_mt.rampup": 0.4,
            "methods.ad_mt.max_period": 19,
        },
    }

    class Params(Strict, frozen=True):
        """Settings of AD-MT."""

        confidence: Fraction = 0.95  # τ: pixels whose confidence is lower do not count
        pseudo_loss: Literal["dice", "cross_entropy"] = "dice"  # L_u
        pseudo_weight: NonNegative = 2.0  # λ at the end of its ramp
        rampup: NonNegative = 0.25  # share of the run over which λ rises
        # A teacher is active for 1 to this many steps; as published, about half an epoch.
        max_period: Positive = 50
        ema_decay: Fraction = 0.99  # decay of the active teacher's moving average

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params)
        self.first_teacher = Ema(self.student, params.ema_decay, dropout=True)
        self.second_teacher = Ema(self.student, params.ema_decay, dropout=True)
        # The periods depend on the seed of the run alone, so nothing about them needs saving. They
        # are drawn one by one: those of a longer run begin with the same ones.
        self._random = random.Random(int(torch.randint(2**31, ())))
        self._switches = [self._draw_period()]  # the steps at which the teachers switch

    def _draw_period(self) -> int:
        return self._random.randint(1, self.params.max_period)

    def phase_at(self, step: int) -> int:
        """Return the number of the teacher that is active at `step`."""
        while self._switches[-1] <= step:
            self._switches.append(self._switches[-1] + self._draw_period())
        return bisect_right(self._switches, step) % 2

    def losses(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        unlabeled = require_unlabeled(batch.unlabeled)
        weak = unlabeled.weak
        target, conflict = self.ensemble(weak)
        mixing = draw_cutmix(weak.shape, weak.device) if self.phase == CUTMIX else None
        view = unlabeled.strong[0] if mixing is None else swap(weak, *mixing)
        log_labeled, log_weak, log_view = forward_concat(
            self.student, batch.labeled.image, weak, view
        )
        student = PseudoLabel.from_probabilities(log_weak.exp())
        target, overruled = overrule(target, student, conflict)
        shares = class_shares(target.label, self.task.classes)
        if mixing is not None:
            target = PseudoLabel(*(swap(x, *mixing) for x in target))
        keep = target.confidence >= self.params.confidence

        labeled = self.supervised_loss(log_labeled, batch.labeled.label)
        pseudo = self.pseudo_label_loss(log_view, target.label, keep)
        ramp = sigmoid_ramp(step, self.params.rampup * self.task.steps)
        return {
            "total": labeled + self.params.pseudo_weight * ramp * pseudo,
            "labeled": labeled,
            "pseudo": pseudo,
            "kept": keep.float().mean(),
            "share_conflict": conflict.float().mean(),
            "share_overruled": overruled.float().mean(),
            **shares,
        }

    @torch.no_grad()
    def ensemble(self, weak: Tensor) -> tuple[PseudoLabel, Tensor]:
        """Label images [U, C, *S] with both teachers.

        The mean of their probabilities has the weights e^−H, where H is the entropy of each in
        bits. The active teacher uses dropout and normalizes by the batch, as in training; the other
        one predicts as in evaluation.

        Returns:
            The pseudo-label of the mean, and where the teachers predict different classes [U, *S].
        """
        active = self.teachers[self.phase].network
        passive = self.teachers[1 - self.phase].network
        log_p = log_probabilities(active(weak))
        with eval_mode(passive):
            log_q = log_probabilities(passive(weak))
        weight = torch.sigmoid((entropy(log_q) - entropy(log_p)) / math.log(2.0))
        mean = torch.lerp(log_q.exp(), log_p.exp(), weight.unsqueeze(1))
        conflict = log_p.max(1).indices != log_q.max(1).indices
        return PseudoLabel.from_probabilities(mean), conflict

    def pseudo_label_loss(self, log_p: Tensor, label: Tensor, keep: Tensor) -> Tensor:
        """Compute L_u of log_p [U, K, *S] against label [U, *S] where `keep` [U, *S] is True."""
        if self.params.pseudo_loss == "dice":
            return dice_loss(log_p.exp(), label, keep)
        return masked_mean(cross_entropy(log_p, label), keep)

    def after_step(self, step: Tensor) -> None:
        """Update the active teacher.

        It is a copy for the first 2 `max_period` steps, by whose end both have been active. After
        that the average counts half of the steps, as a teacher is active in about half of them.
        """
        count = (step // 2 - self.params.max_period).clamp(min=0)
        self.teachers[self.phase].update(self.student, count)

    @property
    def teachers(self) -> tuple[Ema, Ema]:
        """The teachers by number."""
        return self.first_teacher, self.second_teacher


def overrule(
    target: PseudoLabel, student: PseudoLabel, conflict: Tensor
) -> tuple[PseudoLabel, Tensor]:
    """Follow the student where the teachers conflict [U, *S] if it contradicts their mean.

    It must be more confident than the mean of the teachers, `target`.

    Returns:
        The new target, and where it is the student's [U, *S].
    """
    surer = (student.label != target.label) & (student.confidence > target.confidence)
    overruled = conflict & surer
    confidence = torch.where(overruled, student.confidence, target.confidence)
    label = torch.where(overruled, student.label, target.label)
    return PseudoLabel(confidence, label), overruled
