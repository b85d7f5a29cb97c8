"""Geometry: resizing, flips and turns, rotation. The same parameters serve image and label.

Letters: B batch, C channels, *S two or three spatial axes, counted from 0 (first spatial axis).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def resize_image(x: Tensor, size: Sequence[int], modality: str) -> Tensor:
    """x [B, C, *S] → [B, C, *size]: nearest for MR (as published for ACDC), (tri)linear else, antialiased in 2D."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if modality == "mr":
        return functional.interpolate(x, tuple(size), mode="nearest-exact")
    if x.ndim == 4:
        return functional.interpolate(x, tuple(size), mode="bilinear", antialias=True)
    return functional.interpolate(x, tuple(size), mode="trilinear")


def resize_label(label: Tensor, size: Sequence[int]) -> Tensor:
    """label [B, *S] uint8 → [B, *size], nearest."""
    return functional.interpolate(label.unsqueeze(1), tuple(size), mode="nearest-exact").squeeze(1)


def turn(x: Tensor, moves: Tensor, axes: tuple[int, int]) -> Tensor:
    """x [B, ?, *S] with sample b flipped along axes[0] and axes[1] and transposed where moves[b] (three booleans) says so.

    The three moves generate all eight flips and 90° turns of a square. Transposing needs equal sides.
    """
    first, second = axes[0] + 2, axes[1] + 2
    chosen = moves.view(*moves.shape, *[1] * (x.ndim - 1)).unbind(1)
    x = torch.where(chosen[0], x.flip(first), x)
    x = torch.where(chosen[1], x.flip(second), x)
    if x.shape[first] == x.shape[second]:
        x = torch.where(chosen[2], x.transpose(first, second), x)
    return x


def rotate(x: Tensor, degrees: Tensor, axes: tuple[int, int], mode: str) -> Tensor:
    """x [B, C, *S] turned by degrees [B] in the plane of `axes` about the center; zeros come in from outside.

    Angles turn axes[0] towards axes[1]; pixels are square: a plane of unequal sides is not sheared. `mode`: bilinear or nearest.
    """
    dims = x.ndim - 2
    radians = torch.deg2rad(degrees)
    sides = [float(s) for s in x.shape[2:]]
    matrix = torch.eye(dims, dims + 1, device=x.device).repeat(len(x), 1, 1)
    # grid_sample counts coordinates from the last axis, each in [-1, 1] over its own side.
    i, j = dims - 1 - axes[0], dims - 1 - axes[1]
    matrix[:, i, i] = matrix[:, j, j] = radians.cos()
    matrix[:, i, j] = radians.sin() * (sides[axes[1]] / sides[axes[0]])
    matrix[:, j, i] = -radians.sin() * (sides[axes[0]] / sides[axes[1]])
    grid = functional.affine_grid(matrix, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid.to(x.dtype), mode=mode, align_corners=False)
