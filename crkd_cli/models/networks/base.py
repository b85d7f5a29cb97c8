"""The contract of a network: encode → decode → head.

Letters: B batch, C image channels, K classes, F features, *S two or three spatial axes, multiples of 16.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

from torch import Tensor, nn

Upsampling = Literal["transposed", "linear", "nearest"]


class Decoder(nn.Module, ABC):
    """The way up: at each of four levels the map below grows, joins the encoder's map of that level, and is fused with it."""

    def __init__(
        self, upsample: Iterable[nn.Module], fuse: Iterable[nn.Module], output: nn.Module
    ) -> None:
        """Layers from the bottom up; the order in which they are made is that of their first weights' draws."""
        super().__init__()
        self.upsample = nn.ModuleList(upsample)
        self.fuse = nn.ModuleList(fuse)
        self.output = output

    @abstractmethod
    def merge_skip(self, upsampled: Tensor, skip: Tensor) -> Tensor:
        """Two maps [B, widths[n], *S/2ⁿ] → what level n's layers fuse."""

    def forward(self, pyramid: Sequence[Tensor], stages: list[Tensor] | None = None) -> Tensor:
        """The encoder's five levels → features [B, F, *S].

        `stages` is extended by the bottom and the four grown maps before they join, bottom first: the shapes of the levels.
        """
        x = pyramid[-1]
        if stages is not None:
            stages.append(x)
        for upsample, fuse, skip in zip(self.upsample, self.fuse, pyramid[-2::-1], strict=True):
            x = upsample(x)
            if stages is not None:
                stages.append(x)
            x = self.merge_skip(
                x, skip
            )  # a line of its own: nothing holds the grown map while it is fused
            x = fuse(x)
        return x

    def drop(self, features: Tensor) -> Tensor:
        """The dropout before the output, in training, where a network has one."""
        return features

    def head(self, features: Tensor) -> Tensor:
        """features [B, F, *S] → logits [B, K, *S]."""
        logits: Tensor = self.output(self.drop(features))
        return logits


class Network(nn.Module, ABC):
    """A segmentation network for `dims` spatial axes. Perturbing features between encode and decode is a method's business."""

    down: nn.ModuleList  # the layers of the five levels
    downsample: nn.ModuleList  # four ways from one level to the next
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
    ) -> None:
        """`upsampling`: how the decoder's maps grow; None: the network's own way. `bottom_dropout`: the fifth level's rate."""
        super().__init__()
        self.dims, self.classes, self.widths = dims, classes, widths
        self.features = widths[0]  # F: channels of the full-resolution map that enters the head

    @abstractmethod
    def new_decoder(self, upsampling: Upsampling | None) -> Decoder:
        """A decoder for this network's levels, freshly drawn."""

    def encode(self, x: Tensor, feedback: Sequence[Tensor | None] = (None,) * 5) -> list[Tensor]:
        """x [B, C, *S] → five levels, from [B, widths[0], *S] to [B, widths[4], *S/16].

        `feedback` has a map for every level, or none, that is added to what the level's layers give, before the next one.
        """
        pyramid: list[Tensor] = []
        for downsample, level, added in zip(
            (nn.Identity(), *self.downsample), self.down, feedback, strict=True
        ):
            x = level(downsample(x))
            if added is not None:
                x = x + added
            pyramid.append(x)
        return pyramid

    def decode(self, pyramid: Sequence[Tensor], stages: list[Tensor] | None = None) -> Tensor:
        """The five levels → features [B, F, *S]; `stages` as in Decoder."""
        features: Tensor = self.decoder(pyramid, stages)
        return features

    def head(self, features: Tensor) -> Tensor:
        """features [B, F, *S] → logits [B, K, *S]."""
        return self.decoder.head(features)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, *S] → logits [B, K, *S]."""
        return self.head(self.decode(self.encode(x)))
