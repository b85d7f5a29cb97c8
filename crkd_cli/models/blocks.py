"""Layers by number of spatial axes. No other file names a 2d or 3d layer.

Shapes: B images, C channels, *S spatial axes (two or three).
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(dims: int, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    """Build a convolution. At stride 1, odd kernels keep *S."""
    layer = (nn.Conv2d, nn.Conv3d)[dims - 2]
    return layer(inputs, outputs, kernel, stride=stride, padding=(kernel - 1) // 2)


def conv_up(dims: int, inputs: int, outputs: int) -> nn.Module:
    """Build a transposed convolution that doubles every axis."""
    return (nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 2](inputs, outputs, 2, stride=2)


def batch_norm(dims: int, channels: int) -> nn.Module:
    """Build a batch norm layer."""
    return (nn.BatchNorm2d, nn.BatchNorm3d)[dims - 2](channels)


def max_pool(dims: int) -> nn.Module:
    """Build a max pooling layer that halves every axis."""
    return (nn.MaxPool2d, nn.MaxPool3d)[dims - 2](2)


def upsample_2x(dims: int, mode: Literal["linear", "nearest"]) -> nn.Module:
    """Build a layer that doubles every axis: nearest, or (bi/tri)linear with aligned corners."""
    if mode == "nearest":
        return nn.Upsample(scale_factor=2, mode="nearest")
    return nn.Upsample(scale_factor=2, mode=("bilinear", "trilinear")[dims - 2], align_corners=True)


def reinitialize_convs(network: nn.Module, initializer: Callable[[Tensor], Tensor]) -> None:
    """Reinitialize the weights of every convolution in place, except transposed ones."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            initializer(layer.weight)


def drop_channels(x: Tensor, p: float | Tensor) -> Tensor:
    """Zero whole channels of x [B, C, *S] with probability p and scale the others by 1/(1 − p).

    This is Dropout2d/3d, except that `p` may also be a tensor [B] with one rate per sample.
    """
    rate = p.view(-1, 1) if isinstance(p, Tensor) else p
    keep = torch.rand(x.shape[:2], device=x.device) >= rate
    scale = (keep / (1.0 - rate)).to(x.dtype)
    return x * scale.view(*x.shape[:2], *[1] * (x.ndim - 2))


class Dropout(nn.Module):
    """Zeroes elements with probability p and scales the others by 1/(1 − p), in training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout to x [B, C, *S]."""
        if not self.training or self.p == 0.0:
            return x
        if x.device.type == "cpu":
            return _dropout_cpu(x, self.p)
        return F.dropout(x, self.p)


def _dropout_cpu(x: Tensor, p: float) -> Tensor:
    """Apply dropout, drawing 16 random bits per element.

    torch's own implementation draws a random number per element, which takes as long as a
    convolution. Here one 64-bit number serves four elements.
    """
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    levels = 2**16
    dropped = round(p * levels)
    keep = draws.view(torch.int16)[: x.numel()] >= dropped - levels // 2
    scale = keep.to(x.dtype).mul_(levels / (levels - dropped))
    channels_last = x.movedim(1, -1)  # the order in memory
    return x * scale.view(channels_last.shape).movedim(-1, 1)
