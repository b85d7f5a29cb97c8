"""LeFeD (Zeng, Xie, Lu, Lu, Zhang and Xia, "Consistency-Guided Differential Decoding for Enhancing Semi-Supervised Medical Image
Segmentation", IEEE TMI 2025): the difference of two decoders' features shows what is hard, and is fed back to the encoder.

Decoder A has transposed convolutions and answers at several scales while it trains. Decoder B upsamples linearly, from levels
that A's features gate. Stages: the bottom and what a decoder grew, of the shapes of the encoder's levels.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, ClassVar

import msgspec
import torch
from torch import Tensor, nn

from crkd_cli.config import NonNegative, Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import dice_loss
from crkd_cli.losses.pixel import (
    cross_entropy,
    log_probabilities,
    masked_mean,
    probabilities,
    squared_difference,
)
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import AuthorSettings, Method, Task, require_unlabeled
from crkd_cli.models.blocks import conv, double
from crkd_cli.schedules import sigmoid_ramp

overlap = partial(dice_loss, classes="foreground")  # as released
SCALES = (
    0.8,
    0.6,
    0.4,
    0.2,
    0.1,
)  # weights of A's answers at the five levels, full resolution first
STEPS = [round(n / 6, 5) for n in range(1, 6)]  # shares of the run
NONE = (None,) * 5

Level = Annotated[int, msgspec.Meta(ge=1, le=5)]


@METHODS.register
class LeFeD(Method):
    """L = Dice(p_A) + Dice(p_B) + Σ_k w_k Dice(q_k) + mean (p_A − p_B)², three times on every batch: first as it is, then with
    10⁻³ (stages of B − stages of A) of the pass before added to the encoder's levels. Decoder A predicts, without feedback.
    """

    updates = 3
    author_settings: ClassVar[AuthorSettings] = {
        # 45,000 updates; the learning rate falls every 2,500 steps.
        "la": {"train.steps": 15000, "train.lr_schedule": "step", "train.lr_milestones": STEPS},
    }

    class Params(Strict, frozen=True):
        feedback_scale: NonNegative = 1e-3  # factor of the difference
        feedback_levels: tuple[Level, ...] = (1, 2, 3, 4, 5)  # that get it, 1 the full resolution
        cross_entropy_weight: NonNegative = (
            0.0  # its weight beside each decoder's Dice loss; as released none
        )
        rampup: NonNegative = (
            0.0  # share of the run over which the consistency's weight rises to 1; 0: none
        )

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params, task.network("transposed", bottom_dropout=0.3))
        self.other = self.student.new_decoder("linear")
        self.gates = Gates()
        self.side = nn.ModuleList(
            nn.Sequential(
                conv(task.dims, width, task.classes, 1),
                *(double(task.dims, "linear") for _ in range(level)),
            )
            for level, width in enumerate(task.model.widths)
        )
        self.feedback: Sequence[Tensor | None] = NONE  # for the next pass over the same batch

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        params, label = self.params, batch.labeled.label
        images = torch.cat([batch.labeled.image, require_unlabeled(batch.unlabeled).weak])
        pyramid = self.student.encode(images, self.feedback)
        stages: list[Tensor] = []
        stages_b: list[Tensor] = []
        log_a = log_probabilities(self.student.head(self.student.decode(pyramid, stages)))
        log_b = log_probabilities(
            self.other.head(self.other(self.gates(pyramid, stages), stages_b))
        )
        self.feedback = self.difference(stages, stages_b)

        count = len(label)
        p_a, p_b = log_a.exp(), log_b.exp()
        labeled = overlap(p_a[:count], label) + overlap(p_b[:count], label)
        if params.cross_entropy_weight:
            by_pixel = cross_entropy(log_a[:count], label) + cross_entropy(log_b[:count], label)
            labeled = labeled + params.cross_entropy_weight * masked_mean(by_pixel, None)
        answers = (
            side(stage[:count]) for side, stage in zip(self.side, reversed(stages), strict=True)
        )
        deep = [
            weight * overlap(probabilities(logits), label)
            for weight, logits in zip(SCALES, answers, strict=True)
        ]
        terms = {
            "labeled": labeled,
            "deep": torch.stack(deep).sum(),
            "consistency": masked_mean(squared_difference(p_a, p_b), None),
        }
        weight = sigmoid_ramp(step, params.rampup * self.task.steps)
        return {"total": terms["labeled"] + terms["deep"] + weight * terms["consistency"], **terms}

    @torch.no_grad()
    def difference(self, stages_a: list[Tensor], stages_b: list[Tensor]) -> list[Tensor | None]:
        """The stages of both decoders, bottom first → what is fed back to each level, full resolution first."""
        pairs = enumerate(zip(reversed(stages_a), reversed(stages_b), strict=True), start=1)
        return [
            (b - a).mul_(self.params.feedback_scale)
            if level in self.params.feedback_levels
            else None
            for level, (a, b) in pairs
        ]

    def after_step(self, step: int) -> None:
        self.feedback = NONE


class Gates(nn.Module):
    """The part of the network before decoder B."""

    def forward(self, pyramid: list[Tensor], stages: list[Tensor]) -> list[Tensor]:
        """The levels as decoder B sees them, with A's `stages` s, bottom first, as constants: skips x_k sigmoid(s_k), and of the
        bottom x₅ + x₅ sigmoid(s₅).
        """
        *skips, bottom = (
            level * stage.detach().sigmoid()
            for level, stage in zip(pyramid, reversed(stages), strict=True)
        )
        return [*skips, pyramid[-1] + bottom]
