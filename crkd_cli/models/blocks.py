"""Layers by number of spatial axes: the only file that names a 2d or 3d layer.

Letters: B batch, C channels, *S two or three spatial axes.
"""

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


def max_pool(dims: int) -> nn.Module:
    """Halves every axis."""
    return (nn.MaxPool2d, nn.MaxPool3d)[dims - 2](2)


def drop_channels(x: Tensor, p: float) -> Tensor:
    """x [B, C, *S] with whole channels set to zero with probability p and the others scaled by 1/(1 − p) (Dropout2d/3d)."""
    keep = torch.rand(x.shape[:2], device=x.device) >= p
    return x * (keep.to(x.dtype) / (1.0 - p)).view(*x.shape[:2], *[1] * (x.ndim - 2))


def double(x: Tensor) -> Tensor:
    """x [B, C, *S] → [B, C, *2S], (bi/tri)linear with aligned corners."""
    mode = ("bilinear", "trilinear")[x.ndim - 4]
    return functional.interpolate(x, scale_factor=2, mode=mode, align_corners=True)
