"""The contract of a method, which turns a batch into losses. No files, no devices, no loop.

Shapes: B images (U unlabeled), C channels, K classes, F features, *S spatial axes (two or three).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from crkd_cli.augment.intensity import noise
from crkd_cli.augment.mix import mix
from crkd_cli.config import Fraction, ModelConfig, NonNegative, Strict, Strides
from crkd_cli.data.batch import Batch, Unlabeled
from crkd_cli.losses.dice import dice_loss
from crkd_cli.losses.pixel import cross_entropy, log_probabilities, masked_mean, probabilities
from crkd_cli.models.ema import Ema
from crkd_cli.models.networks import NETWORKS
from crkd_cli.models.networks.base import Network, Upsampling

AuthorSettings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Task:
    """What a method needs to know about the run."""

    model: ModelConfig
    dims: int  # spatial axes of the network
    channels: int  # C
    classes: int  # K, including the background
    steps: int  # length of the run
    # Labels may contain K, at pixels that count in no loss (see `Method.counted_labels`).
    has_ignored: bool = False
    strides: Strides | None = None  # of the network's downsamplings; None halves every axis
    # New networks start from their pretrained weights, if they have any. Where the weights of a
    # checkpoint replace them anyway, it is False, so that the former need not be installed.
    pretrained: bool = False

    def network(self, upsampling: Upsampling | None = None, bottom_dropout: float = 0.5) -> Network:
        """Build a new network as configured; `upsampling` None keeps the network's default."""
        network_class = NETWORKS[self.model.name]
        network = network_class(
            self.dims,
            self.channels,
            self.classes,
            self.model.widths,
            upsampling,
            bottom_dropout,
            self.strides,
        )
        if self.pretrained:
            network.load_pretrained()
        return network


class Method(nn.Module, ABC):
    """Holds the networks of a method and computes its losses.

    The training loop calls the method under autocast, `updates` times per step. On a GPU it
    captures the step as a CUDA graph if it can: if `losses` and `after_step` read no value from the
    device (`.item()`, `if`), copy nothing between host and device, and always do the same
    operations, whatever the data and the number of the step.
    """

    # 0: labeled images only; 1: unlabeled images; 2: also batch.partners, images to mix with.
    unlabeled_streams: ClassVar[int] = 1
    # Strongly augmented views of every unlabeled image.
    strong_views: ClassVar[int] = 0
    # Optimizer updates on every batch, each with its own losses. One batch is one step.
    updates: ClassVar[int] = 1
    # What the authors set differently from configs/DATASET.yaml and Params, by dataset, such as
    # {"la": {"train.steps": 6000}}. Applies with the packaged configuration; --set overrides it.
    author_settings: ClassVar[AuthorSettings] = {}
    # The phase of the current step, as `phase_at` returns it. The training loop sets it.
    phase: int = 0

    class Params(Strict, frozen=True):
        """The settings of a method. The defaults are its values for ACDC."""

    def __init__(self, task: Task, params: Strict, student: Network | None = None) -> None:
        """Build the student, unless a method passes its own variant of the network."""
        super().__init__()
        self.task = task
        self.params = params
        self.student = task.network() if student is None else student

    def phase_at(self, step: int) -> int:
        """Return which of several kinds of step the step with this number is, such as a warm-up.

        A method whose operations change during training branches on `self.phase`.
        """
        return 0

    @abstractmethod
    def losses(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        """Compute scalars by name: "total" is backpropagated, and all of them are logged.

        `step` is the number of the step as a float64 scalar on the device: calculate with it, and
        do not branch on it.

        "kept" and names that start with "share_" are fractions of pixels, not losses.

        Each of several processes gets its part of the joint batch, but "total" is the loss of the
        joint batch: sums over a batch go through `world.all_sum`, or through the functions in
        `losses`, which do that.
        """

    def forward(self, batch: Batch, step: Tensor) -> dict[str, Tensor]:
        """Call `losses`. DistributedDataParallel needs it as the forward pass of a module."""
        return self.losses(batch, step)

    def after_step(self, step: Tensor) -> None:
        """Run after the last update on a batch, for example to update a moving average."""

    def supervised_loss(
        self,
        log_p: Tensor,
        label: Tensor,
        mask: Tensor | None = None,
        *,
        dice: Callable[[Tensor, Tensor, Tensor | None], Tensor] = dice_loss,
    ) -> Tensor:
        """Compute ½ (cross entropy + Dice) of log_p [B, K, *S] against label [B, *S].

        Only pixels inside mask [B, *S] count, and ignored ones never do. `dice` is `dice_loss` in
        the form that the authors of the method use.
        """
        label, counted = self.counted_labels(label, mask)
        by_pixel = cross_entropy(log_p, label)
        return 0.5 * (masked_mean(by_pixel, counted) + dice(log_p.exp(), label, counted))

    def counted_labels(
        self, label: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Prepare label [B, *S], which may contain K, for the functions in `losses`.

        Returns the label with a valid class number everywhere, and the pixels that count: those
        inside mask [B, *S] that are not ignored, or None if all do.
        """
        if not self.task.has_ignored:
            return label, mask
        counted = label < self.task.classes
        if mask is not None:
            counted = counted & mask
        return label.clamp(max=self.task.classes - 1), counted

    @property
    def restore_best_after(self) -> int:
        """Number of steps after which training resumes from its best state so far; 0: never.

        The best state, including the optimizer's, is the one with the highest score on the
        validation cases. Without validation cases training just continues.
        """
        return 0

    @property
    def predictor(self) -> nn.Module:
        """The network that is evaluated and predicts: image [B, C, *S] → logits [B, K, *S]."""
        return self.student


class MeanTeacherBase(Method):
    """A method whose teacher is the moving average of the student.

    Like the student, the teacher uses dropout and normalizes by the statistics of the batch.
    """

    class Params(Strict, frozen=True):
        """Settings that all mean teachers share."""

        noise: NonNegative = 0.1  # σ of the noise on the teacher's images, clamped to ±2σ
        ema_decay: Fraction = 0.99  # decay of the teacher's moving average

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params)
        self.teacher = Ema(self.student, params.ema_decay, dropout=True)

    @torch.no_grad()
    def teacher_probabilities(self, weak: Tensor) -> Tensor:
        """Predict [U, K, *S] for images [U, C, *S] with noise added."""
        return probabilities(self.teacher.network(noise(weak, self.params.noise)))

    def after_step(self, step: Tensor) -> None:
        """Update the teacher."""
        self.teacher.update(self.student, step)


class PseudoLabel(NamedTuple):
    """A prediction for the networks to learn, without gradient."""

    confidence: Tensor  # [B, *S]
    label: Tensor  # [B, *S] class numbers

    @classmethod
    def from_probabilities(cls, p: Tensor) -> "PseudoLabel":
        """Take the most likely class of p [B, K, *S] at every pixel."""
        return cls(*p.detach().max(1))

    def cutmix(self, partner: "PseudoLabel", box: Tensor) -> "PseudoLabel":
        """Take the box [B, *S] from the pseudo-label of the mixing partner."""
        confidence = mix(self.confidence, partner.confidence, box)
        return PseudoLabel(confidence, mix(self.label, partner.label, box))


def require_unlabeled(images: Unlabeled | None) -> Unlabeled:
    """Return `images`, which are present for every method that asks for them."""
    if images is None:
        raise ValueError("the method needs unlabeled images")
    return images


def forward_concat(network: nn.Module, *images: Tensor) -> tuple[Tensor, ...]:
    """Compute log-probabilities [B, K, *S] of several batches in a single forward pass.

    The batches share their batch norm statistics.
    """
    log_p = log_probabilities(network(torch.cat(images)))
    return torch.split(log_p, [len(batch) for batch in images])


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put `network` in evaluation mode: no dropout, running statistics in batch norm."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def forward_head(network: Network, features: Tensor) -> Tensor:
    """Map features [B, F, *S] to log-probabilities [B, K, *S], without the head's dropout."""
    with eval_mode(network):
        return log_probabilities(network.head(features))


def class_shares(label: Tensor, num_classes: int, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Return the fraction of pixels of every foreground class, by the name it is logged under.

    Pixels of label [B, *S] outside mask [B, *S] count as background.
    """
    shares = {}
    for number in range(1, num_classes):
        members = label == number
        if mask is not None:
            members = members & mask
        shares[f"share_{number}"] = members.float().mean()
    return shares
