"""The contract of a network: encode → decode → head.

The encoder returns a feature pyramid of five levels, from full resolution (level 0) down to the
bottom (level 4). The decoder maps it to features at full resolution, and the head to logits.

Shapes: B images, C channels, K classes, F features, *S spatial axes (two or three). *Sₙ is the
size at level n: *S divided by the first n strides, so by 2ⁿ unless an axis is short.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from crkd_cli.config import DOWNSAMPLINGS, Strides

Upsampling = Literal["transposed", "linear", "nearest"]


class Decoder(nn.Module, ABC):
    """Upsamples the bottom level four times, each time merging and fusing it with a skip."""

    def __init__(
        self, upsample: Iterable[nn.Module], fuse: Iterable[nn.Module], output: nn.Module
    ) -> None:
        """Take the layers from the bottom up.

        The order in which they are built determines which random numbers initialize them.
        """
        super().__init__()
        self.upsample = nn.ModuleList(upsample)
        self.fuse = nn.ModuleList(fuse)
        self.output = output

    @abstractmethod
    def merge_skip(self, upsampled: Tensor, skip: Tensor) -> Tensor:
        """Combine two maps [B, widths[n], *Sₙ] into the input of level n's `fuse` layers."""

    def forward(self, pyramid: Sequence[Tensor], stages: list[Tensor] | None = None) -> Tensor:
        """Decode the encoder's five levels to features [B, F, *S].

        If given, `stages` is extended by the bottom level and the four upsampled maps before they
        are merged. They have the shapes of the levels, bottom first.
        """
        x = pyramid[-1]
        if stages is not None:
            stages.append(x)
        for upsample, fuse, skip in zip(self.upsample, self.fuse, pyramid[-2::-1], strict=True):
            x = upsample(x)
            if stages is not None:
                stages.append(x)
            # Two statements, so that the upsampled map is freed before fusing.
            x = self.merge_skip(x, skip)
            x = fuse(x)
        return x

    def drop(self, features: Tensor) -> Tensor:
        """Apply the dropout before the output in training, if the network has one."""
        return features

    def head(self, features: Tensor) -> Tensor:
        """Map features [B, F, *S] to logits [B, K, *S]."""
        logits: Tensor = self.output(self.drop(features))
        return logits


class Network(nn.Module, ABC):
    """A segmentation network. Methods may perturb features between `encode` and `decode`."""

    color_only: ClassVar[bool] = False  # only for RGB images, in 2D

    down: nn.ModuleList  # the layers of the five levels
    downsample: nn.ModuleList  # four layers, each from one level to the next
    decoder: Decoder

    @abstractmethod
    def __init__(
        self,
        dims: int,
        channels: int,
        classes: int,
        widths: Sequence[int],
        upsampling: Upsampling | None = None,
        bottom_dropout: float = 0.5,
        strides: Strides | None = None,
    ) -> None:
        """Build the layers.

        Args:
            dims: spatial axes, 2 or 3.
            channels: C.
            classes: K.
            widths: channels of the five levels.
            upsampling: how the decoder upsamples; None for the network's default.
            bottom_dropout: dropout rate of the bottom level.
            strides: of the four downsamplings; None halves every axis.
        """
        super().__init__()
        self.dims, self.classes, self.widths = dims, classes, widths
        self.strides = strides or ((2,) * dims,) * DOWNSAMPLINGS
        self.features = widths[0]  # F: channels of the full-resolution map that enters the head

    @abstractmethod
    def new_decoder(self, upsampling: Upsampling | None) -> Decoder:
        """Build another decoder for this network's encoder, with fresh weights."""

    def load_pretrained(self) -> None:
        """Load the weights that training starts from; most networks have none and stay random.

        Raises UsageError if the weights are not installed.
        """
        return

    def encode(self, x: Tensor, feedback: Sequence[Tensor | None] = (None,) * 5) -> list[Tensor]:
        """Encode x [B, C, *S] to five levels, from [B, widths[0], *S] to [B, widths[4], *S₄].

        `feedback` holds for every level a map, or None, that is added to the output of the
        level's layers before it enters the next level. In a network with a pretrained encoder, it
        enters only the decoder.
        """
        pyramid: list[Tensor] = []
        downsampling = (nn.Identity(), *self.downsample)
        for downsample, level, added in zip(downsampling, self.down, feedback, strict=True):
            x = level(downsample(x))
            if added is not None:
                x = x + added
            pyramid.append(x)
        return pyramid

    def decode(self, pyramid: Sequence[Tensor], stages: list[Tensor] | None = None) -> Tensor:
        """Decode the five levels to features [B, F, *S]; for `stages` see Decoder."""
        features: Tensor = self.decoder(pyramid, stages)
        return features

    def head(self, features: Tensor) -> Tensor:
        """Map features [B, F, *S] to logits [B, K, *S]."""
        return self.decoder.head(features)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, *S] to logits [B, K, *S]."""
        return self.head(self.decode(self.encode(x)))
