"""The contract of a method: it turns a batch into losses. No files, no devices, no loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crkd_cli.augment.intensity import noise
from crkd_cli.config import Fraction, ModelConfig, NonNegative, Strict
from crkd_cli.data.batch import Batch, Unlabeled
from crkd_cli.losses.dice import dice_loss
from crkd_cli.losses.pixel import cross_entropy, log_probabilities, masked_mean, probabilities
from crkd_cli.models.ema import Ema
from crkd_cli.models.networks import NETWORKS
from crkd_cli.models.networks.base import Network, Upsampling

AuthorSettings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Task:
    """What a method must know of the run."""

    model: ModelConfig
    dims: int  # spatial axes of the network
    channels: int  # C
    classes: int  # K, background included
    steps: int  # T, length of the run

    def network(self, upsampling: Upsampling | None = None, bottom_dropout: float = 0.5) -> Network:
        """A new network as the configuration names it; None: with its own way of upsampling."""
        kind = NETWORKS[self.model.name]
        return kind(
            self.dims, self.channels, self.classes, self.model.widths, upsampling, bottom_dropout
        )


class Method(nn.Module, ABC):
    """Holds its networks; `losses` is called by the loop at every step (`updates` times), under autocast."""

    unlabeled_streams: ClassVar[int] = (
        1  # 0: labeled images alone; 2: mixing partners (batch.partners) besides
    )
    strong_views: ClassVar[int] = 0  # strongly augmented views of every unlabeled image
    updates: ClassVar[int] = (
        1  # optimizer steps on every batch, each with losses of its own; a batch is a step
    )
    # By data set, what the authors set otherwise than configs/NAME.yaml and Params: {"la": {"train.steps": 6000}}. It holds
    # where the packaged configuration is used, and gives way to --set.
    author_settings: ClassVar[AuthorSettings] = {}

    class Params(Strict, frozen=True):
        """The method's own settings; defaults are its values for ACDC."""

    def __init__(self, task: Task, params: Strict, student: Network | None = None) -> None:
        """`student`: where the method needs another network than the configuration's own."""
        super().__init__()
        self.task = task
        self.params = params
        self.student = task.network() if student is None else student

    @abstractmethod
    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Scalars by name: "total" is back-propagated, all are logged; "kept" and "share_…" are shares, not losses.

        Of several processes each gets its part of the joint batch, and "total" is the joint batch's: what is summed over a
        batch goes through `world.all_sum`, or through the functions of `losses`, which do that.
        """

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """`losses`, as the call of a module: where several processes train, each on its part of the joint batch."""
        return self.losses(batch, step)

    def after_step(self, step: int) -> None:
        """Called after the last of a batch's updates, for moving averages and the like."""

    @property
    def restore_best_after(self) -> int:
        """After so many steps training goes on from the state, the optimizer's included, that scored best on the validation cases
        so far; 0: never. Without validation cases it goes on from where it is.
        """
        return 0

    @property
    def predictor(self) -> nn.Module:
        """image [B, C, *S] → logits [B, K, *S]: what is evaluated and what predicts."""
        return self.student


class MeanTeaching(Method):
    """Its teacher is the student's moving average and, like it, drops features and normalizes by the batch."""

    class Params(Strict, frozen=True):
        noise: NonNegative = 0.1  # σ of the noise on the teacher's images, cut at 2σ
        ema_decay: Fraction = 0.99  # of the teacher's moving average

    params: Params

    def __init__(self, task: Task, params: Params) -> None:
        super().__init__(task, params)
        self.teacher = Ema(self.student, params.ema_decay, dropout=True)

    @torch.no_grad()
    def answer(self, weak: Tensor) -> Tensor:
        """weak [U, C, *S] → the teacher's probabilities [U, K, *S] from the images with noise."""
        return probabilities(self.teacher.network(noise(weak, self.params.noise)))

    def after_step(self, step: int) -> None:
        self.teacher.update(self.student, step)


def require_unlabeled(images: Unlabeled | None) -> Unlabeled:
    """The images, which a method that asks for them always gets."""
    if images is None:
        raise ValueError("the method needs unlabeled images")
    return images


def forward_concat(network: nn.Module, *images: Tensor) -> tuple[Tensor, ...]:
    """Log-probabilities [B, K, *S] of each of `images`, in one pass: they share the statistics of batch norm."""
    return torch.split(
        log_probabilities(network(torch.cat(images))), [len(some) for some in images]
    )


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Inside, `network` neither drops features nor takes the statistics of a batch."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def forward_head(network: Network, features: Tensor) -> Tensor:
    """features [B, F, *S] → log-probabilities [B, K, *S], without the dropout that a network has before its output."""
    with eval_mode(network):
        return log_probabilities(network.head(features))


def supervised_loss(
    log_p: Tensor,
    label: Tensor,
    mask: Tensor | None = None,
    *,
    dice: Callable[[Tensor, Tensor, Tensor | None], Tensor] = dice_loss,
) -> Tensor:
    """½ (CE + Dice) from log-probabilities [B, K, *S] against label [B, *S], over the pixels of mask [B, *S].

    `dice`: `dice_loss` in the form that the method's authors use.
    """
    return 0.5 * (masked_mean(cross_entropy(log_p, label), mask) + dice(log_p.exp(), label, mask))
