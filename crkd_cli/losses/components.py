"""Connected components of masks, for cleaning pseudo-labels, on any device and without host synchronization on a GPU."""

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional


def largest_component(mask: Tensor) -> Tensor:
    """mask [N, *S] boolean → the largest component of each, [N, *S]; neighbors touch at a face, an edge or a corner."""
    return (
        torch.stack([_by_scipy(one) for one in mask])
        if mask.device.type == "cpu"
        else by_hooking(mask)
    )


def _by_scipy(mask: Tensor) -> Tensor:
    inside = mask.numpy()
    numbers, _ = ndimage.label(inside, np.ones((3,) * inside.ndim))
    sizes = np.bincount(numbers[inside], minlength=1)
    return torch.from_numpy(inside & (numbers == sizes.argmax()))


def by_hooking(mask: Tensor) -> Tensor:
    """`largest_component` by operations on whole tensors, which a GPU does without asking the host.

    Trees of pixels are hooked to the highest number seen next to them and shortened until every component is one tree whose root
    is its highest number (FastSV; Zhang, Azad and Hu, SIAM Parallel Processing 2020).
    """
    shape, inside = mask.shape, mask.flatten(1)
    parent = torch.arange(inside.shape[1], device=mask.device).expand_as(inside).contiguous()
    # Noise takes 10 to 13 rounds, a path that winds through the whole image log₂ n.
    for _ in range(math.ceil(math.log2(inside.shape[1])) + 8):
        grand = parent.gather(1, parent)
        highest = _highest_neighbor(torch.where(inside, grand, -1).view(shape)).flatten(1)
        highest = torch.where(inside, highest, grand)
        new = parent.scatter_reduce(1, parent, highest, "amax")
        parent = torch.maximum(torch.maximum(new, highest), grand)
    sizes = torch.zeros(inside.shape, device=mask.device).scatter_add_(1, parent, inside.float())
    return (inside & (parent == sizes.argmax(1, keepdim=True))).view(shape)


def _highest_neighbor(numbers: Tensor) -> Tensor:
    """Integers [N, *S], at least −1 → the highest among each pixel and its neighbors, [N, *S]."""
    pool = (functional.max_pool2d, functional.max_pool3d)[numbers.ndim - 3]
    exact = torch.float32 if numbers[0].numel() < 2**24 else torch.float64
    pooled: Tensor = pool(numbers.to(exact).unsqueeze(1), 3, stride=1, padding=1)
    return pooled.squeeze(1).long()
