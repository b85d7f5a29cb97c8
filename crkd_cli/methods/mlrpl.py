"""MLRPL (Su, Luo, Lian, Lin and Li, "Mutual learning with reliable pseudo label for semi-supervised medical image segmentation",
Medical Image Analysis 2024): two decoders on one encoder give each other pseudo-labels.

Each learns where it is less certain than the other, and a pixel counts by how well the other's probabilities agree with how
similar its feature is to those of each class. Letters: B batch, K classes, F features, *S two or three spatial axes.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from crkd_cli.config import NonNegative, Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import dice_loss
from crkd_cli.losses.pixel import cross_entropy, entropy, log_probabilities, masked_mean
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import AuthorSettings, Method, Task, require_unlabeled
from crkd_cli.schedules import sigmoid_ramp

LENGTH = 1e-8  # features shorter than this have no direction


class Lesson(NamedTuple):
    """What one decoder says to the other, without gradient; three [B, *S]."""

    pseudo: Tensor  # ŷ
    weight: Tensor  # w: how far it is to be trusted
    entropy: Tensor


@METHODS.register
class Mlrpl(Method):
    """L = λ_s Σ_i Dice(p_i) + λ(t) Σ_ij mean of w_j CE(p_i, ŷ_j) where H(p_i) > H(p_j), i ≠ j. The first decoder predicts."""

    author_settings: ClassVar[AuthorSettings] = {
        "la": {"train.steps": 15000, "train.lr_schedule": "constant"}
    }

    class Params(Strict, frozen=True):
        labeled_weight: NonNegative = (
            0.5  # λ_s, of the sum of both decoders' Dice losses: their mean
        )
        consistency_weight: NonNegative = 1.0  # λ at the end of its ramp
        rampup: NonNegative = 0.4  # share of the run over which λ rises
        mutual_on_labeled: bool = True  # the decoders teach each other on labeled images too
        dropped_features: bool = (
            True  # compare the features that the network's last dropout leaves, as released; or all
        )
        predicted_class_only: bool = (
            False  # w from the predicted class alone, not the mean over classes
        )

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params, task.network("transposed"))
        self.other = self.student.new_decoder("nearest")

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        params, label = self.params, batch.labeled.label
        pyramid = self.student.encode(
            torch.cat([batch.labeled.image, require_unlabeled(batch.unlabeled).weak])
        )
        first = 0 if params.mutual_on_labeled else len(label)
        labeled, answers, lessons = [], [], []
        for decoder in (self.student.decoder, self.other):
            features = decoder(pyramid)
            entering = decoder.drop(features)
            log_p = log_probabilities(decoder.output(entering))
            labeled.append(
                dice_loss(log_p[: len(label)].exp(), label, classes="foreground", squared=False)
            )
            answers.append(log_p[first:])
            lessons.append(
                self.lesson(
                    log_p[first:], (entering if params.dropped_features else features)[first:]
                )
            )
        one, two = lessons
        terms = {
            "labeled": torch.stack(labeled).sum(),
            "pseudo": mutual_loss(answers[0], one, two) + mutual_loss(answers[1], two, one),
        }
        weight = params.consistency_weight * sigmoid_ramp(step, params.rampup * self.task.steps)
        shares = {
            "share_reliable": 0.5 * (one.weight.mean() + two.weight.mean()),
            "share_agreed": (one.pseudo == two.pseudo).float().mean(),
            "share_foreground": (one.pseudo > 0).float().mean(),
        }
        return {
            "total": params.labeled_weight * terms["labeled"] + weight * terms["pseudo"],
            **terms,
            **shares,
        }

    @torch.no_grad()
    def lesson(self, log_p: Tensor, features: Tensor) -> Lesson:
        """log_p [B, K, *S], features [B, F, *S]."""
        pseudo, p = log_p.max(1).indices, log_p.exp()
        agreement = 1.0 - (similarity(features, pseudo, p.shape[1]) - p).square()
        weight = (
            agreement.gather(1, pseudo.unsqueeze(1)).squeeze(1)
            if self.params.predicted_class_only
            else agreement.mean(1)
        )
        return Lesson(pseudo, weight, entropy(log_p))


def mutual_loss(log_p: Tensor, own: Lesson, taught: Lesson) -> Tensor:
    """The weighted cross entropy of log_p [B, K, *S] against the other's labels, where it is the less certain one."""
    return masked_mean(
        taught.weight * cross_entropy(log_p, taught.pseudo), own.entropy > taught.entropy
    )


def similarity(features: Tensor, pseudo: Tensor, count: int) -> Tensor:
    """Cosine of every pixel's feature and the mean feature of each of `count` classes in its image, [B, K, *S]; 0 for a class
    that is nowhere. features [B, F, *S], pseudo [B, *S].
    """
    rows = features.float().movedim(1, -1).flatten(1, -2)  # [B, pixels, F]
    members = pseudo.flatten(1).unsqueeze(1) == torch.arange(count, device=pseudo.device).unsqueeze(
        1
    )  # [B, K, pixels]
    with torch.autocast(features.device.type, enabled=False):
        prototypes = functional.normalize(
            members.float() @ rows, dim=2
        )  # of the sums: the means' direction
        cosines = (
            rows
            @ prototypes.mT
            / torch.linalg.vector_norm(rows, dim=2, keepdim=True).clamp(min=LENGTH)
        )
    by_class: Tensor = cosines.view(*pseudo.shape, count).movedim(-1, 1)
    return by_class
