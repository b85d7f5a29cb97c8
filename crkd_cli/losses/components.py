"""Connected components of masks, for cleaning pseudo-labels.

Works on any device and never synchronizes a GPU with the host.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor


def largest_component(mask: Tensor) -> Tensor:
    """Keep the largest connected component of every mask, boolean [N, *S].

    Pixels are connected if they share a face, an edge or a corner.
    """
    if mask.device.type == "cpu":
        return torch.stack([_largest_by_scipy(single) for single in mask])
    return largest_by_fastsv(mask)


def _largest_by_scipy(mask: Tensor) -> Tensor:
    inside = mask.numpy()
    components, _ = ndimage.label(inside, np.ones((3,) * inside.ndim))
    sizes = np.bincount(components[inside], minlength=1)
    return torch.from_numpy(inside & (components == sizes.argmax()))


def largest_by_fastsv(mask: Tensor) -> Tensor:
    """Compute `largest_component` with whole-tensor operations, for a GPU."""
    inside = mask.flatten(1)  # [N, pixels]
    roots = _component_roots(mask)
    sizes = torch.zeros(inside.shape, device=mask.device).scatter_add_(1, roots, inside.float())
    return (inside & (roots == sizes.argmax(1, keepdim=True))).view(mask.shape)


def _component_roots(mask: Tensor) -> Tensor:
    """Label every pixel with the highest pixel number of its component: [N, *S] → [N, pixels].

    Implements FastSV (Zhang, Azad and Hu, SIAM Parallel Processing 2020): trees of pixels are
    hooked to the highest number seen next to them and shortened, until every component is one
    tree. Pixels outside the mask are their own roots.
    """
    inside = mask.flatten(1)
    num_pixels = inside.shape[1]
    parent = torch.arange(num_pixels, device=mask.device).expand_as(inside).contiguous()
    # Noise takes 10 to 13 rounds, a path that winds through the whole image log₂(pixels).
    for _ in range(math.ceil(math.log2(num_pixels)) + 8):
        grandparent = parent.gather(1, parent)
        numbers = torch.where(inside, grandparent, -1).view(mask.shape)
        highest = torch.where(inside, _neighbor_maximum(numbers).flatten(1), grandparent)
        hooked = parent.scatter_reduce(1, parent, highest, "amax")
        parent = torch.maximum(torch.maximum(hooked, highest), grandparent)
    return parent


def _neighbor_maximum(numbers: Tensor) -> Tensor:
    """Return the maximum of each pixel and its neighbors, integers [N, *S] of at least −1."""
    pool = (F.max_pool2d, F.max_pool3d)[numbers.ndim - 3]
    exact = torch.float32 if numbers[0].numel() < 2**24 else torch.float64
    pooled: Tensor = pool(numbers.to(exact).unsqueeze(1), 3, stride=1, padding=1)
    return pooled.squeeze(1).long()
