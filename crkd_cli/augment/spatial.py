"""Geometry: resizing, flips and 90° turns, rotation, affine maps.

Image and label get the same parameters.

Shapes: B images, C channels, *S spatial axes (two or three). Spatial axes are numbered from 0.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from crkd_cli.transfer import to_device

CLASSES_AT_ONCE = 8  # of a label that is interpolated: each takes a float32 map of its size


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
    x = flip(x, moves[:, :2], axes)
    first, second = axes[0] + 2, axes[1] + 2
    if x.shape[first] == x.shape[second]:
        transposed = moves[:, 2].view(-1, *[1] * (x.ndim - 1))
        x = torch.where(transposed, x.transpose(first, second), x)
    return x


def flip(x: Tensor, chosen: Tensor, axes: Sequence[int]) -> Tensor:
    """Flip every sample of x [B, C, *S] along the `axes` that are `chosen` [B, axes] for it."""
    for flipped, axis in zip(chosen.unbind(1), axes, strict=True):
        x = torch.where(flipped.view(-1, *[1] * (x.ndim - 1)), x.flip(axis + 2), x)
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


def rotation_and_scale(degrees: Tensor, factor: Tensor) -> Tensor:
    """Return the matrices A of `affine` that rotate, and shrink objects by `factor` [B].

    A is factor · R in 2D, with degrees [B, 1] from axis 0 towards axis 1; in 3D, it is
    factor · R₂ R₁ R₀, with degrees [B, 3] about axes 0, 1 and 2, in this order. Shape [B, d, d].
    """
    planes = [(0, 1)] if degrees.shape[1] == 1 else [(1, 2), (0, 2), (0, 1)]
    eye = torch.eye(2 if len(planes) == 1 else 3).repeat(len(degrees), 1, 1)
    matrix = eye * factor.view(-1, 1, 1)
    for radians, (i, j) in zip(torch.deg2rad(degrees).unbind(1), planes, strict=True):
        rotation = eye.clone()
        rotation[:, i, i] = rotation[:, j, j] = radians.cos()
        rotation[:, j, i] = radians.sin()
        rotation[:, i, j] = -radians.sin()
        matrix = rotation @ matrix
    return matrix


def affine(x: Tensor, matrix: Tensor, size: Sequence[int], axes: Sequence[int]) -> Tensor:
    """Resample x [B, C, *Q] along `axes` to [B, C, *size], interpolating linearly.

    A voxel o of the result, counted from its center, is read at A·o from the center of x, with A
    from `matrix` [B, d, d] on the host and d the number of `axes`. Zeros come in from outside. The
    other axes, whose size does not change, only number the images that are resampled.
    """
    others = [axis + 2 for axis in range(x.ndim - 2) if axis not in axes]
    # [B, C, others, axes] → [B, C · others, axes]
    images = x.movedim(others, [*range(2, 2 + len(others))])
    counts = images.shape[1 : 2 + len(others)]
    images = images.flatten(1, 1 + len(others))
    grid = _sampling_grid(matrix, [size[axis] for axis in axes], images.shape[2:], x.device)
    resampled = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    resampled = resampled.reshape(len(x), *counts, *resampled.shape[2:])
    return resampled.movedim([*range(2, 2 + len(others))], others)


def _sampling_grid(
    matrix: Tensor, size: Sequence[int], source: Sequence[int], device: torch.device
) -> Tensor:
    """Return the grid [B, *size, d] by which `grid_sample` reads from `source` as `affine` says.

    A sum of one product per axis, which is faster than the matrix products of `affine_grid` and
    does not depend on the other samples of the batch, not even in rounding.
    """
    dims = len(size)
    # grid_sample counts coordinates from the last axis, each in [-1, 1] over its own side.
    scaled = matrix * (2.0 / torch.tensor(source).unsqueeze(1))
    columns = to_device(scaled.flip(1), device).unbind(2)  # by axis of the result
    grid = torch.zeros(1, device=device)
    for axis, (column, side) in enumerate(zip(columns, size, strict=True)):
        position = torch.arange(side, device=device) - (side - 1) / 2
        position = position.view(-1, *[1] * (dims - axis))
        grid = grid + column.view(-1, *[1] * dims, dims) * position
    return grid


def affine_label(
    label: Tensor, matrix: Tensor, size: Sequence[int], axes: Sequence[int], count: int
) -> Tensor:
    """Resample label [B, *Q], whose values are below `count`, as `affine` does: [B, *size].

    The indicator of every value is interpolated, and the largest wins. Outside is 0.
    """
    best = values = torch.zeros(1, device=label.device)
    background = torch.ones(1, device=label.device)
    for first in range(1, count, CLASSES_AT_ONCE):
        numbers = torch.arange(first, min(first + CLASSES_AT_ONCE, count), device=label.device)
        indicators = label.unsqueeze(1) == numbers.view(-1, *[1] * (label.ndim - 1))
        shares = affine(indicators.float(), matrix, size, axes)
        share, number = shares.max(1)
        values = torch.where(share > best, number + first, values)
        best = torch.maximum(best, share)
        # What is left of 1 is the indicator of 0 and so includes what comes in from outside.
        background = background - shares.sum(1)
    return (values * (best > background)).to(label.dtype)
