"""The contract of an augmentation policy, which turns stored images into the views of a step.

Labeled images and weak views differ from what is stored mainly in geometry. Strong views are made
from weak ones and differ in intensity alone, so that both can be compared pixel by pixel.

Shapes: B images, C channels, *S the spatial axes of the frame, *Q those of the source images, which
may be larger.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from crkd_cli import world


class ChannelTraits(NamedTuple):
    """What the intensities of a channel depend on."""

    modality: str  # RGB, gray, MR or CT
    bounded: bool  # values lie in [0, 1]; otherwise the range of every sample is kept


@dataclass(frozen=True)
class Policy(ABC):
    """The augmentation of one dataset, a function of its images and of a CPU generator.

    Each of several processes draws for the joint batch and uses its part, so that every image
    is augmented as it would be in a single process.
    """

    channels: Sequence[ChannelTraits]
    size: tuple[int, ...]  # *S
    plane: tuple[int, int]  # the axes with the smallest spacing, in which images are turned
    mirror: tuple[int, ...]  # the axes along which images may be flipped
    label_values: int  # labels are below it
    anisotropic: bool = False  # the axis outside `plane` has far larger spacing

    @property
    def dims(self) -> int:
        """Number of spatial axes of the network: 2 or 3."""
        return len(self.size)

    @property
    def source_size(self) -> tuple[int, ...]:
        """The size *Q of the images that are augmented, with a margin around *S if needed."""
        return self.size

    @abstractmethod
    def labeled(self, image: Tensor, label: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Augment labeled images [B, C, *Q] and their labels [B, *Q]: [B, C, *S], [B, *S]."""

    @abstractmethod
    def weak(self, image: Tensor, generator: Generator) -> Tensor:
        """Make the weak view [B, C, *S] of unlabeled images [B, C, *Q]."""

    @abstractmethod
    def strong(self, weak: Tensor, generator: Generator) -> Tensor:
        """Make a strong view of weak ones [B, C, *S], with the same geometry."""


def uniform(shape: int | tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """Draw from [low, high); the first axis of `shape` counts the samples of this process."""
    count, *rest = (shape,) if isinstance(shape, int) else shape
    drawn = torch.rand(count * world.size(), *rest, generator=generator)
    return world.shard(drawn) * (high - low) + low
