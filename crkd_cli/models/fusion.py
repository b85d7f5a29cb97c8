"""Networks as they run after training: the same answers with fewer passes over memory."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval


@torch.no_grad()
def fuse_for_inference(network: nn.Module, precision: torch.dtype = torch.float32) -> nn.Module:
    """A copy of `network` in evaluation mode with the same answers to rounding, to run under autocast to `precision`.

    In evaluation mode batch norm scales and shifts every channel by constants. Where it stands just after a convolution
    in an `nn.Sequential`, the two become one layer: the convolution's weight and bias do the scaling and the shift.

    In bf16 a bias of that size would lose what it is there for (three digits are left of it, and every voxel of the
    channel is off by the same). There the batch norm stays, in fp32, and takes over the convolution's bias; the
    convolutions' weights are rounded once instead of at every call.
    """
    network = copy.deepcopy(network).requires_grad_(False).eval()
    rounded = precision != torch.float32
    for sequence in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for (place, layer), (after, norm) in pairwise(list(sequence.named_children())):
            if (
                isinstance(layer, _ConvNd)
                and isinstance(norm, _BatchNorm)
                and norm.running_mean is not None
            ):
                merge = _bias_last if rounded else _one
                for name, module in zip((place, after), merge(layer, norm), strict=True):
                    sequence.register_module(name, module)
    for module in network.modules():
        if rounded and isinstance(module, _ConvNd):
            module.to(precision)
    return network


def _one(layer: _ConvNd, norm: _BatchNorm) -> tuple[nn.Module, nn.Module]:
    return fuse_conv_bn_eval(
        layer, norm, transpose=isinstance(layer, _ConvTransposeNd)
    ), nn.Identity()


def _bias_last(layer: _ConvNd, norm: _BatchNorm) -> tuple[nn.Module, nn.Module]:
    layer, norm = copy.deepcopy(layer), copy.deepcopy(norm)  # either may stand elsewhere too
    if layer.bias is not None and norm.running_mean is not None:
        norm.running_mean -= layer.bias
        layer.bias = None
    return layer, norm
