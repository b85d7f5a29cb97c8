"""Layers by number of spatial axes. No other file names a 2d or 3d layer.

Shapes: B images, C channels, *S spatial axes (two or three).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def conv(dims: int, inputs: int, outputs: int, kernel: int) -> nn.Module:
    """Build a convolution with an odd `kernel`, which keeps *S."""
    if kernel == 1:
        return (PointwiseConv2d, PointwiseConv3d)[dims - 2](inputs, outputs, kernel)
    return (nn.Conv2d, nn.Conv3d)[dims - 2](inputs, outputs, kernel, padding=(kernel - 1) // 2)


def conv_same(
    inputs: int, outputs: int, kernel: int, stride: Sequence[int], groups: int = 1
) -> list[nn.Module]:
    """Build a convolution without bias that maps *S to ⌈*S / stride⌉, as TensorFlow's "SAME" does.

    With stride 1 that is a single layer, else a layer that pads and one that convolves.
    """
    layer: Callable[..., nn.Module] = (nn.Conv2d, nn.Conv3d)[len(stride) - 2]
    if kernel == 1:
        layer = (PointwiseConv2d, PointwiseConv3d)[len(stride) - 2]
    if max(stride) == 1:
        padding = (kernel - 1) // 2
        return [layer(inputs, outputs, kernel, padding=padding, groups=groups, bias=False)]
    convolution = layer(inputs, outputs, kernel, tuple(stride), groups=groups, bias=False)
    return [SamePadding(kernel, stride), convolution]


class SamePadding(nn.Module):
    """Pads with zeros so that a convolution maps *S to ⌈*S / stride⌉.

    Where an axis needs an odd number of zeros, its end gets one more than its start.
    """

    def __init__(self, kernel: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        """Pad x [B, C, *S]."""
        padding: list[int] = []
        axes = zip(x.shape[2:], self.stride, strict=True)
        for side, step in reversed(list(axes)):  # F.pad begins with the last axis
            covered = (-(-side // step) - 1) * step + self.kernel
            total = max(covered - side, 0)
            padding += [total // 2, total - total // 2]
        return F.pad(x, padding)


def conv_down(inputs: int, outputs: int, stride: Sequence[int]) -> nn.Module:
    """Build a convolution of blocks of `stride`, which divides the axes by it."""
    dims = len(stride)
    if max(stride) == 1:
        return conv(dims, inputs, outputs, 1)
    layer: Callable[..., nn.Module] = (nn.Conv2d, nn.Conv3d)[dims - 2]
    return layer(inputs, outputs, stride, stride)


class PointwiseConv2d(nn.Conv2d):
    """A convolution of width 1 that always runs in oneDNN on a CPU that has it.

    On one thread, torch runs those of fewer than 16 images in fp32 as a matrix product, which takes
    three times as long and changes the memory layout. It does not if they are dilated, which has
    no effect on a kernel of width 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, *S] to [B, outputs, *S]."""
        if x.device.type != "cpu" or not has_onednn():
            return super().forward(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, dilation=2)


class PointwiseConv3d(nn.Conv3d):
    """PointwiseConv2d for volumes."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, *S] to [B, outputs, *S]."""
        if x.device.type != "cpu" or not has_onednn():
            return super().forward(x)
        return F.conv3d(x, self.weight, self.bias, self.stride, dilation=2)


def has_onednn() -> bool:
    """Return whether this build of PyTorch computes convolutions on a CPU with oneDNN."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def conv_up(inputs: int, outputs: int, stride: Sequence[int]) -> nn.Module:
    """Build a transposed convolution to blocks of `stride`, which multiplies the axes by it."""
    layer: Callable[..., nn.Module] = (nn.ConvTranspose2d, nn.ConvTranspose3d)[len(stride) - 2]
    return layer(inputs, outputs, stride, stride)


def batch_norm(dims: int, channels: int, eps: float = 1e-5) -> nn.Module:
    """Build a batch norm layer; `eps` is added to the variance."""
    return (nn.BatchNorm2d, nn.BatchNorm3d)[dims - 2](channels, eps)


def max_pool(stride: Sequence[int]) -> nn.Module:
    """Build a max pooling layer over blocks of `stride`, which divides the axes by it."""
    if max(stride) == 1:
        return nn.Identity()
    layer: Callable[..., nn.Module] = (nn.MaxPool2d, nn.MaxPool3d)[len(stride) - 2]
    return layer(stride)


def interpolation(stride: Sequence[int], mode: Literal["linear", "nearest"]) -> nn.Module:
    """Build a layer that multiplies the axes by `stride`, each 1 or 2.

    The mode is nearest, or (bi/tri)linear with aligned corners.
    """
    if max(stride) == 1:
        return nn.Identity()
    if mode == "nearest":
        return nn.Upsample(scale_factor=tuple(stride), mode="nearest")
    return LinearUpsample(stride)


def resize_linear(x: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate x [B, C, *S] (bi/tri)linearly to `size`; the outer edges stay in place."""
    mode = ("bilinear", "trilinear")[len(size) - 2]
    return F.interpolate(x, tuple(size), mode=mode, align_corners=False)


def reinitialize_convs(network: nn.Module, initializer: Callable[[Tensor], Tensor]) -> None:
    """Reinitialize the weights of every convolution in place, except transposed ones."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            initializer(layer.weight)


def drop_channels(x: Tensor, p: float | Tensor) -> Tensor:
    """Zero whole channels of x [B, C, *S] with probability p and scale the others by 1/(1 − p).

    This is Dropout2d/3d, except that `p` may also be a tensor [B] with one rate per sample.
    """
    return x * _channel_scale(x, p)


def append_dropped(x: Tensor, start: int, rates: Sequence[float]) -> Tensor:
    """Append to x [B, C, *S] one copy of x[start:] per rate, with channels dropped at that rate.

    The same as concatenating x and `drop_channels` of x[start:], with half of the passes over
    memory in the backward pass.
    """
    scales = [_channel_scale(x[start:], rate) for rate in rates]
    joined: Tensor = _AppendScaled.apply(x, start, *scales)  # type: ignore[no-untyped-call]
    return joined


def _channel_scale(x: Tensor, p: float | Tensor) -> Tensor:
    """Draw the factor of every channel of x [B, C, *S], as [B, C, 1, …]."""
    rate = p.view(-1, 1) if isinstance(p, Tensor) else p
    keep = torch.rand(x.shape[:2], device=x.device) >= rate
    scale = (keep / (1.0 - rate)).to(x.dtype)
    return scale.view(*x.shape[:2], *[1] * (x.ndim - 2))


class _AppendScaled(torch.autograd.Function):
    """Concatenates x [B, …] and x[start:] multiplied by each of `scales`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: int, *scales: Tensor) -> Tensor:
        ctx.start, ctx.length = start, len(x)
        ctx.save_for_backward(*scales)
        joined = torch.cat([x, *[x[start:]] * len(scales)])
        copies = joined[len(x) :].view(len(scales), -1, *x.shape[1:])
        for copy, scale in zip(copies, scales, strict=True):
            copy.mul_(scale)
        return joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scales = ctx.saved_tensors
        total = grad[: ctx.length].clone()
        copies = grad[ctx.length :].view(len(scales), -1, *grad.shape[1:])
        for copy, scale in zip(copies, scales, strict=True):
            total[ctx.start :] += copy * scale
        return total, None, *[None] * len(scales)


_CACHED = 2**20  # numbers that fit into the cache of a CPU


class LinearUpsample(nn.Upsample):
    """Doubles the axes with stride 2 by (bi/tri)linear interpolation with aligned corners."""

    def __init__(self, stride: Sequence[int]) -> None:
        mode = ("bilinear", "trilinear")[len(stride) - 2]
        super().__init__(scale_factor=tuple(stride), mode=mode, align_corners=True)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample x [B, C, *S]."""
        if x.device.type == "cpu" and torch.is_grad_enabled() and x.requires_grad:
            upsampled: Tensor = _LinearUpsampleCpu.apply(x, self.scale_factor, self.mode)  # type: ignore[no-untyped-call]
            return upsampled
        return super().forward(x)


class _LinearUpsampleCpu(torch.autograd.Function):
    """LinearUpsample with a backward pass along one axis after the other.

    torch's own copies the gradient out of the channels-last layout and its result back, and takes
    four times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: tuple[float, ...], mode: str) -> Tensor:
        ctx.doubled = [axis for axis, factor in enumerate(scale, start=1) if factor == 2]
        ctx.shape = x.movedim(1, -1).shape
        return F.interpolate(x, scale_factor=scale, mode=mode, align_corners=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.movedim(1, -1)  # [B, *S, C], the order in memory
        result = grad.new_empty(ctx.shape)
        step = max(1, _CACHED // grad[0].numel())  # samples at a time, which stay in the cache
        for first in range(0, len(grad), step):
            part = grad[first : first + step]
            halved = part.to(torch.promote_types(part.dtype, torch.float32))
            for axis in ctx.doubled:
                halved = _halve(halved, axis)
            result[first : first + step] = halved
        return result.movedim(-1, 1), None, None


def _halve(grad: Tensor, axis: int) -> Tensor:
    """Return the gradient of a linear interpolation from n to 2n points with aligned corners.

    Output 2j is (1 − j/m) x[j] + j/m x[j − 1] with m = 2n − 1, and by symmetry output 2j + 1 is
    (1 − k/m) x[j] + k/m x[j + 1] with k = n − 1 − j.
    """
    before, n, after = grad.shape[:axis], grad.shape[axis] // 2, grad.shape[axis + 1 :]
    even, odd = grad.view(*before, n, 2, *after).unbind(axis + 1)
    weight = torch.arange(n, dtype=grad.dtype) / (2 * n - 1)
    weight = weight.view(-1, *[1] * len(after))
    mirrored = weight.flip(0)
    total = even * (1.0 - weight)
    total.addcmul_(odd, 1.0 - mirrored)
    head, tail = (slice(None),) * axis + (slice(-1),), (slice(None),) * axis + (slice(1, None),)
    total[head].addcmul_(even[tail], weight[1:])
    total[tail].addcmul_(odd[head], mirrored[:-1])
    return total


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
    bits = draws.view(torch.int16)[: x.numel()]
    # Written as numbers right away, a comparison takes a sixth of the time of one to booleans.
    scale = torch.ge(bits, dropped - levels // 2, out=torch.empty_like(bits, dtype=x.dtype))
    scale.mul_(levels / (levels - dropped))
    channels_last = x.movedim(1, -1)  # the order in memory
    return x * scale.view(channels_last.shape).movedim(-1, 1)
