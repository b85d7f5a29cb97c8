"""Symmetric CutMix: pairs of samples swap a box."""

import torch
from torch import Tensor

from crkd_cli import world

AREA = (0.02, 0.4)       # of the image (2D) or volume (3D)
ASPECT = (0.3, 1 / 0.3)


def box_sides(fraction: Tensor, aspect: Tensor, dims: int) -> Tensor:
    """Sides as fractions of the image's, [N, dims], whose product is `fraction` [N].

    2D: √(a/r), √(a·r). 3D: ∛(v/r), ∛(v·r), ∛v.
    """
    factors = [1.0 / aspect, aspect, torch.ones_like(aspect)][:dims]
    return torch.stack([(fraction * factor) ** (1.0 / dims) for factor in factors], dim=1)


def draw_boxes(count: int, dims: int) -> tuple[Tensor, Tensor]:
    """(low, high), two [count, dims] fractions in [0, 1]: random boxes that lie wholly inside.

    Area fraction uniform in [0.02, 0.4]; aspect uniform in [0.3, 1/0.3], limited to what fits.
    """
    fraction = torch.empty(count).uniform_(*AREA)
    # A side is at most 1: a·r ≤ 1 and a/r ≤ 1.
    lowest, highest = fraction.clamp(min=ASPECT[0]), (1.0 / fraction).clamp(max=ASPECT[1])
    aspect = lowest + torch.rand(count) * (highest - lowest)
    sides = box_sides(fraction, aspect, dims)
    low = torch.rand(count, dims) * (1.0 - sides)
    return low, low + sides


def draw_swap(shape: torch.Size, probability: float = 0.5) -> tuple[Tensor, Tensor]:
    """(partner [N·B], box [N·B, *S] boolean) for the joint batch of N processes, each of which holds `shape` [B, C, *S].

    Drawn from torch's own generator on the CPU; all must use process 0's draw (`share_swap`). Samples are paired at random; with
    `probability` a pair swaps one box, the same in both. An odd sample stays as it is.
    """
    batch, spatial = shape[0] * world.size(), shape[2:]
    pairs = batch // 2
    order = torch.randperm(batch)
    partner = torch.arange(batch)
    first, second = order[:pairs], order[pairs : 2 * pairs]
    partner[first], partner[second] = second, first
    low, high = draw_boxes(pairs, len(spatial))
    swapped = torch.rand(pairs) < probability
    box = torch.zeros(batch, *spatial, dtype=torch.bool)
    inside = swapped.view(-1, *[1] * len(spatial)).expand(pairs, *spatial).clone()
    for axis, side in enumerate(spatial):
        centres = (torch.arange(side) + 0.5) / side
        within = (centres >= low[:, axis : axis + 1]) & (centres < high[:, axis : axis + 1])
        inside &= within.view(pairs, *[side if a == axis else 1 for a in range(len(spatial))])
    box[first], box[second] = inside, inside
    return partner, box


def share_swap(partner: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """This process's part, [B] and [B, *S], of what process 0 drew. Both on the device of the images."""
    return world.part(world.first(partner)), world.part(world.first(box))


def swap(x: Tensor, partner: Tensor, box: Tensor) -> Tensor:
    """x [B, C, *S] or [B, *S] with every sample's box [B, *S] taken from its partner [B], a number in the joint batch."""
    return torch.where(box.unsqueeze(1) if x.ndim > box.ndim else box, world.gather(x)[partner], x)
