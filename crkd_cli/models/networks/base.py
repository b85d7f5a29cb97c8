"""The contract of a network: encode → decode → head.

Letters: B batch, C image channels, K classes, F features, *S two or three spatial axes, multiples of 16.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class Network(nn.Module, ABC):
    """A segmentation network for `dims` spatial axes. Perturbing features between encode and decode is a method's business."""

    features: int    # F: channels of the full-resolution map that enters the head

    @abstractmethod
    def __init__(self, dims: int, channels: int, classes: int, widths: Sequence[int]) -> None:
        super().__init__()

    @abstractmethod
    def encode(self, x: Tensor) -> list[Tensor]:
        """x [B, C, *S] → five levels, from [B, widths[0], *S] to [B, widths[4], *S/16]."""

    @abstractmethod
    def decode(self, pyramid: Sequence[Tensor]) -> Tensor:
        """The five levels → features [B, F, *S]."""

    @abstractmethod
    def head(self, features: Tensor) -> Tensor:
        """features [B, F, *S] → logits [B, K, *S]."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, *S] → logits [B, K, *S]."""
        return self.head(self.decode(self.encode(x)))
