"""MLRPL: two decoders on one encoder give each other pseudo-labels.

J. Su, Z. Luo, S. Lian, D. Lin and S. Li, "Mutual learning with reliable pseudo label for
semi-supervised medical image segmentation", Medical Image Analysis 2024.

Each decoder learns where it is less certain than the other one. A pixel is weighted by how well
the other decoder's probabilities agree with the similarity of its feature to the mean feature of
each class.

Shapes: B images, K classes, F features, *S spatial axes (two or three).
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crkd_cli.config import NonNegative, Strict
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import dice_loss
from crkd_cli.losses.pixel import cross_entropy, entropy, log_probabilities, masked_mean
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import AuthorSettings, Method, Task, require_unlabeled
from crkd_cli.models.networks.base import Decoder
from crkd_cli.schedules import sigmoid_ramp

MIN_NORM = 1e-8  # shorter features have no direction


class Target(NamedTuple):
    """What one decoder gives the other to learn, without gradient; each [B, *S]."""

    label: Tensor  # ŷ
    weight: Tensor  # w, its reliability
    entropy: Tensor


@METHODS.register
class Mlrpl(Method):
    """L = λ_s Σ_i Dice(p_i) + λ(t) Σ_{i≠j} mean of w_j CE(p_i, ŷ_j) where H(p_i) > H(p_j).

    The first decoder predicts.
    """

    author_settings: ClassVar[AuthorSettings] = {
        "la": {"train.steps": 15000, "train.lr_schedule": "constant"}
    }

    class Params(Strict, frozen=True):
        """Settings of MLRPL."""

        labeled_weight: NonNegative = 0.5  # λ_s; 0.5 averages the Dice losses of both decoders
        consistency_weight: NonNegative = 1.0  # λ at the end of its ramp
        rampup: NonNegative = 0.4  # share of the run over which λ rises
        mutual_on_labeled: bool = True  # the decoders teach each other on labeled images too
        # Compare features after the network's last dropout, as released; false: before it.
        dropped_features: bool = True
        predicted_class_only: bool = False  # w from the predicted class; false: mean over classes

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params, task.network("transposed"))
        self.other = self.student.new_decoder("nearest")

    def losses(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        params, label = self.params, batch.labeled.label
        images = torch.cat([batch.labeled.image, require_unlabeled(batch.unlabeled).weak])
        pyramid = self.student.encode(images)
        log_1, features_1 = self.forward_decoder(self.student.decoder, pyramid)
        log_2, features_2 = self.forward_decoder(self.other, pyramid)
        truth = self.counted_labels(label)
        labeled = labeled_loss(log_1, *truth) + labeled_loss(log_2, *truth)

        start = 0 if params.mutual_on_labeled else len(label)
        log_1, log_2 = log_1[start:], log_2[start:]
        target_1 = self.target(log_1, features_1[start:])
        target_2 = self.target(log_2, features_2[start:])
        pseudo_1 = pseudo_label_loss(log_1, target_1.entropy, target_2)
        pseudo_2 = pseudo_label_loss(log_2, target_2.entropy, target_1)
        pseudo = pseudo_1 + pseudo_2
        weight = params.consistency_weight * sigmoid_ramp(step, params.rampup * self.task.steps)
        return {
            "total": params.labeled_weight * labeled + weight * pseudo,
            "labeled": labeled,
            "pseudo": pseudo,
            "share_reliable": 0.5 * (target_1.weight.mean() + target_2.weight.mean()),
            "share_agreed": (target_1.label == target_2.label).float().mean(),
            "share_foreground": (target_1.label > 0).float().mean(),
        }

    def forward_decoder(self, decoder: Decoder, pyramid: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return log-probabilities [B, K, *S] and the features [B, F, *S] to compare."""
        features = decoder(pyramid)
        dropped = decoder.drop(features)
        log_p = log_probabilities(decoder.output(dropped))
        return log_p, dropped if self.params.dropped_features else features

    @torch.no_grad()
    def target(self, log_p: Tensor, features: Tensor) -> Target:
        """Derive what a decoder teaches from its log_p [B, K, *S] and features [B, F, *S]."""
        label, p = log_p.max(1).indices, log_p.exp()
        agreement = 1.0 - (similarity(features, label, p.shape[1]) - p).square()  # [B, K, *S]
        if self.params.predicted_class_only:
            weight = agreement.gather(1, label.unsqueeze(1)).squeeze(1)
        else:
            weight = agreement.mean(1)
        return Target(label, weight, entropy(log_p))


def labeled_loss(log_p: Tensor, label: Tensor, mask: Tensor | None) -> Tensor:
    """Compute Dice of the labeled images, which come first in log_p [B, K, *S], inside mask."""
    p = log_p[: len(label)].exp()
    return dice_loss(p, label, mask, classes="foreground", squared=False)


def pseudo_label_loss(log_p: Tensor, entropy: Tensor, target: Target) -> Tensor:
    """Compute the weighted cross entropy to the other decoder's label where that is more certain.

    log_p is [B, K, *S], entropy [B, *S].
    """
    by_pixel = target.weight * cross_entropy(log_p, target.label)
    return masked_mean(by_pixel, entropy > target.entropy)


def similarity(features: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Compute the cosine between every feature and the mean feature of each class: [B, K, *S].

    features are [B, F, *S], label [B, *S]. Means are taken over the image; the similarity to a
    class that does not occur in it is 0.
    """
    rows = features.float().movedim(1, -1).flatten(1, -2)  # [B, pixels, F]
    classes = torch.arange(num_classes, device=label.device).unsqueeze(1)
    members = label.flatten(1).unsqueeze(1) == classes  # [B, K, pixels]
    with torch.autocast(features.device.type, enabled=False):
        # A sum has the direction of the mean.
        prototypes = F.normalize(members.float() @ rows, dim=2)  # [B, K, F]
        norms = torch.linalg.vector_norm(rows, dim=2, keepdim=True).clamp(min=MIN_NORM)
        cosines = rows @ prototypes.mT / norms
    by_class: Tensor = cosines.view(*label.shape, num_classes).movedim(-1, 1)
    return by_class
