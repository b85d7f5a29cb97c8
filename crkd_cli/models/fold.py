"""Networks as they run after training: batch norm folded into the convolutions before it."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval


@torch.no_grad()
def folded(network: nn.Module) -> nn.Module:
    """A copy of `network` in evaluation mode with the same answers to rounding, without its batch norm.

    In evaluation mode batch norm scales and shifts every channel by constants. A convolution just before it in an
    `nn.Sequential` does so as well with other weights, and a pass over every feature map is saved.
    """
    network = copy.deepcopy(network).requires_grad_(False).eval()
    for sequence in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for (place, layer), (after, norm) in pairwise(list(sequence.named_children())):
            if isinstance(layer, _ConvNd) and isinstance(norm, _BatchNorm) and norm.track_running_stats:
                merged = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, _ConvTransposeNd))
                sequence.register_module(place, merged)
                sequence.register_module(after, nn.Identity())
    return network
