"""Networks for inference: the same predictions with fewer passes over memory."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

from crkd_cli.models.blocks import has_onednn

# What oneDNN calls them.
_ACTIVATIONS = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.ReLU6: "hardtanh"}


@torch.no_grad()
def fuse_for_inference(network: nn.Module, precision: torch.dtype = torch.float32) -> nn.Module:
    """Return a fused copy of `network` in evaluation mode, to run under autocast to `precision`.

    Its predictions are the same up to rounding. In evaluation mode batch norm scales and shifts
    every channel by constants. Where it directly follows a convolution in an `nn.Sequential`, the
    two become one layer whose weight and bias do the scaling and the shift. On a CPU, that layer
    also applies the ReLU, leaky ReLU or ReLU6 after them.

    In bf16, such a large bias would be rounded to three digits, and every voxel of a channel would
    be off by the same amount. On a CPU, it stays in fp32. Elsewhere the batch norm stays, in fp32,
    and absorbs the bias of the convolution. The weights of the convolutions are rounded once
    instead of in every call.
    """
    network = copy.deepcopy(network).requires_grad_(False).eval()
    onednn = _runs_in_onednn(network, precision)
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            _fuse_layers(module, precision, onednn=onednn)
    for module in network.modules():
        if precision != torch.float32 and isinstance(module, _ConvNd):
            module.to(precision)
    return network


def _runs_in_onednn(network: nn.Module, precision: torch.dtype) -> bool:
    """Return whether oneDNN computes the convolutions of `network`, as on most CPUs."""
    if not has_onednn():
        return False
    if precision != torch.float32 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return all(p.is_cpu and p.dtype == torch.float32 for p in network.parameters())


def _fuse_layers(sequence: nn.Sequential, precision: torch.dtype, *, onednn: bool) -> None:
    """Fuse every convolution in `sequence` with the batch norm that follows it, in place."""
    layers = [*sequence.named_children(), ("", nn.Identity())]
    for triple in zip(layers, layers[1:], layers[2:], strict=False):
        conv, norm, activation = (layer for _, layer in triple)
        if not isinstance(conv, _ConvNd) or not isinstance(norm, _BatchNorm):
            continue
        if norm.running_mean is None:  # it normalizes by the batch in evaluation mode too
            continue
        if onednn and conv.padding_mode == "zeros" and isinstance(conv.padding, tuple):
            fused = _merge_in_onednn(conv, norm, activation, precision)
        elif precision == torch.float32:
            fused = [_merge(conv, norm), nn.Identity()]
        else:
            fused = _move_bias(conv, norm)
        for (name, _), layer in zip(triple, fused, strict=False):
            sequence.register_module(name, layer)


def _merge(conv: _ConvNd, norm: _BatchNorm) -> _ConvNd:
    return fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, _ConvTransposeNd))


def _merge_in_onednn(
    conv: _ConvNd, norm: _BatchNorm, activation: nn.Module, precision: torch.dtype
) -> list[nn.Module]:
    """Return what replaces a convolution, its batch norm, and `activation` if it can be fused."""
    name = _ACTIVATIONS.get(type(activation), "none")
    scalars: list[float] = []
    if isinstance(activation, nn.LeakyReLU):
        scalars = [activation.negative_slope]
    elif isinstance(activation, nn.ReLU6):
        scalars = [activation.min_val, activation.max_val]
    fused = _OneDnnConv(_merge(conv, norm), precision, name, scalars)
    return [fused, nn.Identity()] if name == "none" else [fused, nn.Identity(), nn.Identity()]


def _move_bias(conv: _ConvNd, norm: _BatchNorm) -> list[nn.Module]:
    """Move the bias of `conv` into copies of both layers, which the network may use elsewhere."""
    conv, norm = copy.deepcopy(conv), copy.deepcopy(norm)
    if conv.bias is not None and norm.running_mean is not None:
        norm.running_mean -= conv.bias
        conv.bias = None
    return [conv, norm]


class _OneDnnConv(nn.Module):
    """A convolution and an activation in one call of oneDNN, with an fp32 bias."""

    def __init__(
        self, conv: _ConvNd, precision: torch.dtype, activation: str, scalars: list[float]
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.to(precision), requires_grad=False)
        self.bias = conv.bias
        sizes = [conv.padding, conv.stride, conv.dilation]
        self._convolve = torch.ops.mkldnn._convolution_pointwise
        if isinstance(conv, _ConvTransposeNd):
            sizes.insert(1, conv.output_padding)
            self._convolve = torch.ops.mkldnn._convolution_transpose_pointwise
        self._settings = (*sizes, conv.groups, activation, scalars, "")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._convolve(x.to(self.weight.dtype), self.weight, self.bias, *self._settings)
        return y
