"""CutMix: samples get a box of another image, or pairs of them swap one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crkd_cli import world
from crkd_cli.transfer import to_device

AREA = (0.02, 0.4)  # of the image (2D) or volume (3D)
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


def draw_swap(
    shape: torch.Size, device: torch.device, probability: float = 0.5
) -> tuple[Tensor, Tensor]:
    """(partner [B], box [B, *S] boolean), on `device`, for a batch of `shape` [B, C, *S]; drawn from torch's CPU generator.

    Samples are paired at random; with `probability` a pair swaps one box, the same in both. An odd sample stays as it is. Of
    several processes all use the draw of process 0 for the joint batch, in which partners are numbered, and get their part.
    """
    batch, spatial = shape[0] * world.size(), shape[2:]
    pairs = batch // 2
    order = torch.randperm(batch)
    partner = torch.arange(batch)
    first, second = order[:pairs], order[pairs : 2 * pairs]
    partner[first], partner[second] = second, first
    corners = torch.zeros(2, batch, len(spatial))  # a box from 0 to 0 is empty
    drawn = torch.stack(draw_boxes(pairs, len(spatial))) * (torch.rand(pairs, 1) < probability)
    corners[:, first] = corners[:, second] = drawn
    # Only corners go to the device: copying whole boxes there would make the host wait.
    partner, low, high = (
        world.shard(world.broadcast(to_device(t, device))) for t in (partner, *corners)
    )
    return partner, fill(low, high, spatial)


def draw_mix(shape: torch.Size, device: torch.device, probability: float = 0.5) -> Tensor:
    """Boxes [B, *S], boolean, on `device`, for a batch of `shape` [B, C, *S]: every sample's own with `probability`, else none.

    Drawn from torch's CPU generator; several processes get their parts of the draw of process 0 for the joint batch.
    """
    count, spatial = shape[0] * world.size(), shape[2:]
    corners = torch.stack(draw_boxes(count, len(spatial))) * (torch.rand(count, 1) < probability)
    low, high = (world.shard(world.broadcast(to_device(t, device))) for t in corners)
    return fill(low, high, spatial)


def draw_box(spatial: torch.Size, device: torch.device, side: float) -> Tensor:
    """One box [1, *S], boolean, for all samples and processes: ⌊side · S⌋ pixels on every axis, anywhere inside."""
    whole = torch.tensor([spatial])
    sides = (side * whole).floor()
    corner = (torch.rand(1, len(spatial)) * (whole - sides)).floor()
    low, high = (world.broadcast(to_device(t / whole, device)) for t in (corner, corner + sides))
    return fill(low, high, spatial)


def fill(low: Tensor, high: Tensor, spatial: Sequence[int]) -> Tensor:
    """The boxes with corners low and high [B, axes], fractions in [0, 1], as boolean [B, *S]: pixels whose centers lie inside."""
    box = torch.ones(len(low), *spatial, dtype=torch.bool, device=low.device)
    for axis, side in enumerate(spatial):
        centers = (torch.arange(side, device=low.device) + 0.5) / side
        within = (centers >= low[:, axis : axis + 1]) & (centers < high[:, axis : axis + 1])
        box &= within.view(-1, *[side if a == axis else 1 for a in range(len(spatial))])
    return box


def mix(x: Tensor, other: Tensor, box: Tensor) -> Tensor:
    """x [B, C, *S] or [B, *S] with the box [B, *S] or [1, *S] taken from `other`, of x's shape."""
    return torch.where(box.unsqueeze(1) if x.ndim > box.ndim else box, other, x)


def swap(x: Tensor, partner: Tensor, box: Tensor) -> Tensor:
    """x [B, C, *S] or [B, *S] with every sample's box [B, *S] taken from its partner [B], a number in the joint batch."""
    return mix(x, world.all_gather(x)[partner], box)
