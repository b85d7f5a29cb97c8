"""Networks for inference: the same predictions with fewer passes over memory."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval


@torch.no_grad()
def fuse_for_inference(network: nn.Module, precision: torch.dtype = torch.float32) -> nn.Module:
    """Return a fused copy of `network` in evaluation mode, to run under autocast to `precision`.

    Its predictions are the same up to rounding. In evaluation mode batch norm scales and shifts
    every channel by constants. Where it directly follows a convolution in an `nn.Sequential`, the
    two become one layer whose weight and bias do the scaling and the shift.

    In bf16, such a large bias would be rounded to three digits, and every voxel of a channel would
    be off by the same amount. There the batch norm stays, in fp32, and absorbs the bias of the
    convolution, and the weights of the convolutions are rounded once instead of in every call.
    """
    network = copy.deepcopy(network).requires_grad_(False).eval()
    rounded = precision != torch.float32
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            _fuse_pairs(module, rounded=rounded)
    for module in network.modules():
        if rounded and isinstance(module, _ConvNd):
            module.to(precision)
    return network


def _fuse_pairs(sequence: nn.Sequential, *, rounded: bool) -> None:
    """Fuse every convolution in `sequence` with the batch norm that follows it, in place."""
    for (conv_name, conv), (norm_name, norm) in pairwise(list(sequence.named_children())):
        if not isinstance(conv, _ConvNd) or not isinstance(norm, _BatchNorm):
            continue
        if norm.running_mean is None:  # it normalizes by the batch in evaluation mode too
            continue
        fused_conv, fused_norm = (_move_bias if rounded else _merge)(conv, norm)
        sequence.register_module(conv_name, fused_conv)
        sequence.register_module(norm_name, fused_norm)


def _merge(conv: _ConvNd, norm: _BatchNorm) -> tuple[nn.Module, nn.Module]:
    transposed = isinstance(conv, _ConvTransposeNd)
    return fuse_conv_bn_eval(conv, norm, transpose=transposed), nn.Identity()


def _move_bias(conv: _ConvNd, norm: _BatchNorm) -> tuple[nn.Module, nn.Module]:
    """Move the bias of `conv` into copies of both layers, which the network may use elsewhere."""
    conv, norm = copy.deepcopy(conv), copy.deepcopy(norm)
    if conv.bias is not None and norm.running_mean is not None:
        norm.running_mean -= conv.bias
        conv.bias = None
    return conv, norm
