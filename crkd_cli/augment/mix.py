"""CutMix: samples get a box of another image, or pairs of samples swap one.

Boxes are drawn from torch's generator of the device, so that the host need not wait or copy. All
processes use the draw of process 0 for the joint batch, each its own part of it.

Shapes: B images, C channels, *S spatial axes (two or three).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from crkd_cli import world

AREA = (0.02, 0.4)  # fraction of the image (2D) or volume (3D)
ASPECT = (0.3, 1 / 0.3)
MARGIN = 1 / 8  # the fraction of an axis without centers of `draw_cutmix`


def box_size(fraction: Tensor, aspect: Tensor, dims: int) -> Tensor:
    """Return the sides of boxes that cover `fraction` [N], as fractions of the image, [N, dims].

    2D: √(a/r), √(a·r). 3D: ∛(v/r), ∛(v·r), ∛v.
    """
    factors = [1.0 / aspect, aspect, torch.ones_like(aspect)][:dims]
    return torch.stack([(fraction * factor) ** (1.0 / dims) for factor in factors], dim=1)


def draw_boxes(count: int, dims: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw boxes that lie inside the image, as corners (low, high) in [0, 1], each [count, dims].

    The area fraction is uniform in [0.02, 0.4], the aspect uniform in [0.3, 1/0.3] as far as the
    box fits.
    """
    fraction = torch.empty(count, device=device).uniform_(*AREA)
    # A side is at most 1: a·r ≤ 1 and a/r ≤ 1.
    lowest, highest = fraction.clamp(min=ASPECT[0]), (1.0 / fraction).clamp(max=ASPECT[1])
    aspect = lowest + torch.rand(count, device=device) * (highest - lowest)
    size = box_size(fraction, aspect, dims)
    low = torch.rand(count, dims, device=device) * (1.0 - size)
    return low, low + size


def draw_swap(
    shape: torch.Size, device: torch.device, probability: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Pair the samples of a batch of `shape` [B, C, *S] at random and draw a box for each pair.

    With `probability` a pair swaps its box, else the box is empty. An odd sample out keeps its
    image.

    Returns:
        partner [B], numbered in the joint batch, and box [B, *S] (boolean), both on `device`.
    """
    batch, spatial = shape[0] * world.size(), shape[2:]
    pairs = batch // 2
    order = torch.randperm(batch, device=device)
    first, second = order[:pairs], order[pairs : 2 * pairs]
    partner = torch.arange(batch, device=device)
    partner[first], partner[second] = second, first

    boxes = torch.stack(draw_boxes(pairs, len(spatial), device))  # [2, pairs, dims]
    chosen = torch.rand(pairs, 1, device=device) < probability
    corners = torch.zeros(2, batch, len(spatial), device=device)
    corners[:, first] = corners[:, second] = boxes * chosen  # a box from 0 to 0 is empty
    partner, low, high = (world.shard(world.broadcast(x)) for x in (partner, *corners))
    return partner, box_mask(low, high, spatial)


def draw_mix(shape: torch.Size, device: torch.device, probability: float = 0.5) -> Tensor:
    """Draw one box per sample of a batch of `shape` [B, C, *S]: boolean [B, *S] on `device`.

    A sample gets a box with `probability`, else its box is empty.
    """
    count, spatial = shape[0] * world.size(), shape[2:]
    corners = torch.stack(draw_boxes(count, len(spatial), device))
    corners = corners * (torch.rand(count, 1, device=device) < probability)
    low, high = (world.shard(world.broadcast(x)) for x in corners)
    return box_mask(low, high, spatial)


def draw_cutmix(shape: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Give every sample of a batch of `shape` [B, C, *S] a box of the sample before it.

    As in AD-MT's program, the sides of all boxes are √λ of the image's, with one λ ~ Beta(4, 4). A
    center lies anywhere except in the first eighth of an axis, and what lies outside the image is
    cut off. A box covers 36 % of an image on average, and 22 % of a volume.

    Returns:
        partner [B], numbered in the joint batch, and box [B, *S] (boolean), both on `device`.
    """
    batch, spatial = shape[0] * world.size(), shape[2:]
    side = torch.rand(7, device=device).median().sqrt()  # of seven numbers, it is Beta(4, 4)
    center = torch.rand(batch, len(spatial), device=device) * (1.0 - MARGIN) + MARGIN
    corners = torch.stack([center - 0.5 * side, center + 0.5 * side])
    low, high = (world.shard(world.broadcast(x)) for x in corners)
    partner = world.shard(torch.arange(batch, device=device).roll(1))
    return partner, box_mask(low, high, spatial)


def draw_box(spatial: torch.Size, device: torch.device, side: float) -> Tensor:
    """Draw one box for all samples and processes: boolean [1, *S] on `device`.

    It measures ⌊side · S⌋ pixels on every axis and lies anywhere inside.
    """
    position = torch.rand(1, len(spatial), device=device)
    low, high = [], []
    for axis, length in enumerate(spatial):
        size = math.floor(side * length)
        corner = (position[:, axis] * (length - size)).floor()
        low.append(corner / length)
        high.append((corner + size) / length)
    corners = world.broadcast(torch.stack([torch.stack(low, 1), torch.stack(high, 1)]))
    return box_mask(corners[0], corners[1], spatial)


def box_mask(low: Tensor, high: Tensor, spatial: Sequence[int]) -> Tensor:
    """Render boxes with corners low and high [B, axes] in [0, 1] as boolean masks [B, *S].

    A pixel belongs to a box if its center lies inside.
    """
    mask = torch.ones(len(low), *spatial, dtype=torch.bool, device=low.device)
    for axis, side in enumerate(spatial):
        centers = (torch.arange(side, device=low.device) + 0.5) / side
        inside = (centers >= low[:, axis : axis + 1]) & (centers < high[:, axis : axis + 1])
        shape = [1] * len(spatial)
        shape[axis] = side
        mask &= inside.view(-1, *shape)
    return mask


def mix(x: Tensor, other: Tensor, box: Tensor) -> Tensor:
    """Take the box [B, *S] or [1, *S] of x [B, C, *S] or [B, *S] from `other`, shaped like x."""
    return torch.where(box.unsqueeze(1) if x.ndim > box.ndim else box, other, x)


def swap(x: Tensor, partner: Tensor, box: Tensor) -> Tensor:
    """Take the box [B, *S] of every sample of x [B, C, *S] or [B, *S] from its partner [B]."""
    return mix(x, world.all_gather(x)[partner], box)
