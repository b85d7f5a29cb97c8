"""LeFeD: the difference between two decoders' features is fed back to the encoder.

Q. Zeng, Y. Xie, Z. Lu, M. Lu, J. Zhang and Y. Xia, "Consistency-Guided Differential Decoding for
Enhancing Semi-Supervised Medical Image Segmentation", IEEE Transactions on Medical Imaging 2025.

The difference shows which regions are hard. Decoder A uses transposed convolutions and, while it
trains, also predicts at several scales. Decoder B upsamples linearly, from encoder levels that
A's features gate.

The stages of a decoder are the bottom level and its four upsampled maps. They have the shapes of
the encoder's levels, in reverse order.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, ClassVar

import msgspec
import torch
from torch import Tensor, nn

from crkd_cli.config import NonNegative, Strict, Strides
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
from crkd_cli.models.blocks import conv, interpolation
from crkd_cli.schedules import sigmoid_ramp

foreground_dice = partial(dice_loss, classes="foreground")  # as released
SCALE_WEIGHTS = (0.8, 0.6, 0.4, 0.2, 0.1)  # of A's side outputs, full resolution first
NO_FEEDBACK = (None,) * 5

Level = Annotated[int, msgspec.Meta(ge=1, le=5)]


@METHODS.register
class LeFeD(Method):
    """L = Dice(p_A) + Dice(p_B) + Σ_k w_k Dice(q_k) + mean (p_A − p_B)².

    Every batch is learned from three times: first as it is, then with 10⁻³ (stages of B − stages
    of A) of the previous pass added to the encoder's levels. Decoder A predicts, without feedback.
    """

    updates = 3
    author_settings: ClassVar[AuthorSettings] = {
        "la": {  # 45,000 updates; the learning rate drops every 2,500 steps
            "train.steps": 15000,
            "train.lr_schedule": "step",
            "train.lr_milestones": [round(number / 6, 5) for number in range(1, 6)],
        },
    }

    class Params(Strict, frozen=True):
        """Settings of LeFeD."""

        feedback_scale: NonNegative = 1e-3  # factor of the difference that is fed back
        feedback_levels: tuple[Level, ...] = (1, 2, 3, 4, 5)  # 1 is the full resolution
        cross_entropy_weight: NonNegative = 0.0  # beside each decoder's Dice loss; none as released
        # Share of the run over which the weight of the consistency rises to 1; 0: it is 1.
        rampup: NonNegative = 0.0

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params, task.network("transposed", bottom_dropout=0.3))
        self.other = self.student.new_decoder("linear")
        self.gates = Gates()
        self.side = nn.ModuleList(
            _side_output(width, task.classes, self.student.strides[:level], task.dims)
            for level, width in enumerate(task.model.widths)
        )
        self.feedback: Sequence[Tensor | None] = NO_FEEDBACK  # for the next pass over the batch

    def losses(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        label, counted = self.counted_labels(batch.labeled.label)
        images = torch.cat([batch.labeled.image, require_unlabeled(batch.unlabeled).weak])
        log_a, log_b, stages_a = self.forward_decoders(images)
        p_a, p_b = log_a.exp(), log_b.exp()
        count = len(label)
        labeled = foreground_dice(p_a[:count], label, counted)
        labeled = labeled + foreground_dice(p_b[:count], label, counted)
        if self.params.cross_entropy_weight:
            by_pixel = cross_entropy(log_a[:count], label) + cross_entropy(log_b[:count], label)
            labeled = labeled + self.params.cross_entropy_weight * masked_mean(by_pixel, counted)
        deep = self.deep_supervision(stages_a, label, counted)
        consistency = masked_mean(squared_difference(p_a, p_b), None)
        weight = sigmoid_ramp(step, self.params.rampup * self.task.steps)
        return {
            "total": labeled + deep + weight * consistency,
            "labeled": labeled,
            "deep": deep,
            "consistency": consistency,
        }

    def forward_decoders(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return log-probabilities of A and B and the stages of A, and update the feedback."""
        pyramid = self.student.encode(images, self.feedback)
        stages_a: list[Tensor] = []
        stages_b: list[Tensor] = []
        features_a = self.student.decode(pyramid, stages_a)
        log_a = log_probabilities(self.student.head(features_a))
        features_b = self.other(self.gates(pyramid, stages_a), stages_b)
        log_b = log_probabilities(self.other.head(features_b))
        self.feedback = self.difference(stages_a, stages_b)
        return log_a, log_b, stages_a

    def deep_supervision(self, stages: list[Tensor], label: Tensor, mask: Tensor | None) -> Tensor:
        """Compute the weighted Dice losses of decoder A's side outputs inside mask [B, *S]."""
        losses = []
        for side, stage, weight in zip(self.side, reversed(stages), SCALE_WEIGHTS, strict=True):
            p = probabilities(side(stage[: len(label)]))
            losses.append(weight * foreground_dice(p, label, mask))
        return torch.stack(losses).sum()

    @torch.no_grad()
    def difference(self, stages_a: list[Tensor], stages_b: list[Tensor]) -> list[Tensor | None]:
        """Compute what is fed back to each level of the encoder, full resolution first."""
        feedback: list[Tensor | None] = []
        pairs = zip(reversed(stages_a), reversed(stages_b), strict=True)
        for level, (a, b) in enumerate(pairs, start=1):
            if level in self.params.feedback_levels:
                feedback.append((b - a).mul_(self.params.feedback_scale))
            else:
                feedback.append(None)
        return feedback

    def after_step(self, step: Tensor) -> None:
        self.feedback = NO_FEEDBACK


class Gates(nn.Module):
    """What decoder B sees of the encoder's levels."""

    def forward(self, pyramid: list[Tensor], stages: list[Tensor]) -> list[Tensor]:
        """Gate the levels x_k with decoder A's stages s_k (bottom first), without gradient to s.

        The skips become x_k · sigmoid(s_k), the bottom x₅ + x₅ · sigmoid(s₅).
        """
        gated = [
            level * stage.detach().sigmoid()
            for level, stage in zip(pyramid, reversed(stages), strict=True)
        ]
        return [*gated[:-1], pyramid[-1] + gated[-1]]


def _side_output(width: int, classes: int, strides: Strides, dims: int) -> nn.Sequential:
    """Build a classifier of the stage below `strides`, upsampled to the full resolution."""
    upsampling = [interpolation(stride, "linear") for stride in reversed(strides)]
    return nn.Sequential(conv(dims, width, classes, 1), *upsampling)
