"""Geometry: resizing, flips and 90° turns, rotation. Image and label get the same parameters.

Shapes: B images, C channels, *S spatial axes (two or three). Spatial axes are numbered from 0.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_image(x: Tensor, size: Sequence[int], *, nearest: bool) -> Tensor:
    """Resize x [B, C, *S] to [B, C, *size].

    Takes the nearest value if `nearest`, else interpolates linearly, with antialiasing in 2D.
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if nearest:
        return F.interpolate(x, tuple(size), mode="nearest-exact")
    if x.ndim == 4:
        return F.interpolate(x, tuple(size), mode="bilinear", antialias=True)
    return F.interpolate(x, tuple(size), mode="trilinear")


def resize_label(label: Tensor, size: Sequence[int]) -> Tensor:
    """Resize label [B, *S] (uint8 or int16) to [B, *size], taking the nearest value."""
    values = label.unsqueeze(1)
    if label.dtype != torch.uint8:  # the only integer type that can be resized
        values = values.float()
    resized = F.interpolate(values, tuple(size), mode="nearest-exact").squeeze(1)
    return resized.to(label.dtype)


def center_crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the center of x [B, C, *Q] as [B, C, *size]."""
    for axis, inner in enumerate(size, start=2):
        x = x.narrow(axis, (x.shape[axis] - inner) // 2, inner)
    return x


def flip_and_transpose(x: Tensor, moves: Tensor, axes: tuple[int, int]) -> Tensor:
    """Flip every sample of x [B, C, *S] along the two `axes` and transpose them.

    `moves` [B, 3] says which: flip along axes[0], flip along axes[1], transpose. Together they
    generate all eight flips and 90° turns of a square. Sides that differ are not transposed.
    """
    first, second = axes[0] + 2, axes[1] + 2
    masks = moves.view(*moves.shape, *[1] * (x.ndim - 1)).unbind(1)
    x = torch.where(masks[0], x.flip(first), x)
    x = torch.where(masks[1], x.flip(second), x)
    if x.shape[first] == x.shape[second]:
        x = torch.where(masks[2], x.transpose(first, second), x)
    return x


def rotate(x: Tensor, degrees: Tensor, axes: tuple[int, int], mode: str) -> Tensor:
    """Rotate x [B, C, *S] by degrees [B] in the plane of `axes` about its center.

    Positive angles turn axes[0] towards axes[1]. Pixels are square: a plane with unequal sides is
    not sheared. Zeros come in from outside. `mode` is "bilinear" or "nearest".
    """
    dims = x.ndim - 2
    radians = torch.deg2rad(degrees)
    sides = [float(side) for side in x.shape[2:]]
    matrix = torch.eye(dims, dims + 1, device=x.device).repeat(len(x), 1, 1)
    # grid_sample counts coordinates from the last axis, each in [-1, 1] over its own side.
    i, j = dims - 1 - axes[0], dims - 1 - axes[1]
    matrix[:, i, i] = matrix[:, j, j] = radians.cos()
    matrix[:, i, j] = radians.sin() * (sides[axes[1]] / sides[axes[0]])
    matrix[:, j, i] = -radians.sin() * (sides[axes[0]] / sides[axes[1]])
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid.to(x.dtype), mode=mode, align_corners=False)
