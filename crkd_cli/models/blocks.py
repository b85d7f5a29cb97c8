"""Layers by number of spatial axes: the only file that names a 2d or 3d layer.

Letters: B batch, C channels, *S two or three spatial axes.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv(dims: int, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    """Convolution with `kernel` on every axis; keeps *S at stride 1 (odd kernels)."""
    layer = (nn.Conv2d, nn.Conv3d)[dims - 2]
    return layer(inputs, outputs, kernel, stride=stride, padding=(kernel - 1) // 2)


def conv_up(dims: int, inputs: int, outputs: int) -> nn.Module:
    """Transposed convolution that doubles every axis."""
    return (nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 2](inputs, outputs, 2, stride=2)


def batch_norm(dims: int, channels: int) -> nn.Module:
    return (nn.BatchNorm2d, nn.BatchNorm3d)[dims - 2](channels)


def reinitialize_convs(network: nn.Module, draw: Callable[[Tensor], Tensor]) -> None:
    """Draws the weights of every convolution, but not of transposed ones, anew with `draw`, which fills a tensor."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            draw(layer.weight)


def max_pool(dims: int) -> nn.Module:
    """Halves every axis."""
    return (nn.MaxPool2d, nn.MaxPool3d)[dims - 2](2)


def drop_channels(x: Tensor, p: float | Tensor) -> Tensor:
    """x [B, C, *S] with whole channels set to zero with probability p and the others scaled by 1/(1 − p) (Dropout2d/3d).

    `p` may be a tensor [B] with a probability of its own for every sample.
    """
    rate = p.view(-1, 1) if isinstance(p, Tensor) else p
    keep = torch.rand(x.shape[:2], device=x.device) >= rate
    return x * (keep / (1.0 - rate)).to(x.dtype).view(*x.shape[:2], *[1] * (x.ndim - 2))


class Dropout(nn.Module):
    """Single elements set to zero with probability p and the others scaled by 1/(1 − p), in training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, *S] → the same shape."""
        if not self.training or self.p == 0.0:
            return x
        return (
            _dropout_on_cpu(x, self.p) if x.device.type == "cpu" else functional.dropout(x, self.p)
        )


def _dropout_on_cpu(x: Tensor, p: float) -> Tensor:
    """torch's own draws a number for every element, which takes as long as a convolution; 16 bits of one decide as well."""
    draws = (
        torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    )
    dropped = round(p * 2**16)  # of 65,536 values
    keep = (draws[: x.numel()] >= dropped - 2**15).to(x.dtype).mul_(2**16 / (2**16 - dropped))
    rows = x.movedim(1, -1)  # the order in memory, channels last
    return x * keep.view(rows.shape).movedim(-1, 1)


def double(dims: int, mode: Literal["linear", "nearest"]) -> nn.Module:
    """x [B, C, *S] → [B, C, *2S]: nearest values, or (bi/tri)linear with aligned corners."""
    if mode == "nearest":
        return nn.Upsample(scale_factor=2, mode="nearest")
    return nn.Upsample(scale_factor=2, mode=("bilinear", "trilinear")[dims - 2], align_corners=True)
