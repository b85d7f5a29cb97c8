"""Synthetic hearts for the demonstration and the tests: short-axis stacks, and 3D atria.

They are drawn, not simulated. Shape, contrast, shading and noise vary from case to case, and there
are other bright round objects, so that a few labeled cases do not cover all variation. Case n
depends only on n.
"""

from itertools import product

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Case = tuple[NDArray[np.int16], NDArray[np.uint8]]
SHORT_AXIS_SHAPE = (6, 64, 64)  # z, y, x
ATRIUM_SHAPE = (40, 64, 64)


def short_axis(number: int) -> Case:
    """Draw the image and the label [z, y, x] of a short-axis stack.

    Classes: 1 right ventricle, 2 myocardium, 3 left ventricle.
    """
    rng = np.random.default_rng([2, number])
    shape = SHORT_AXIS_SHAPE
    level = np.linspace(0.0, 1.0, shape[0])[:, None, None]  # 0 at the base, 1 at the apex
    row, column = _plane(rng, shape)
    taper = np.sqrt(1.0 - (rng.uniform(0.75, 0.95) * level) ** 2)
    row, column = _place_heart(rng, row, column, level)

    radius = rng.uniform(0.17, 0.33) * taper
    wall = rng.uniform(0.07, 0.15) * (0.6 + 0.4 * taper)
    distance = np.hypot(row * rng.uniform(0.9, 1.15), column)
    left = distance < radius
    outer = distance < radius + wall
    center = -(radius + wall) * rng.uniform(0.85, 1.15)
    right = _right_ventricle(rng, row, column - center, taper)
    right &= ~outer & (level < rng.uniform(0.75, 1.05))
    label = np.select([left, outer, right], [3, 2, 1], 0).astype(np.uint8)

    blood = rng.uniform(0.6, 1.0)
    muscle = blood * rng.uniform(0.25, 0.65)
    image = _surroundings(rng, shape, blood, muscle)
    image[right] = blood * rng.uniform(0.75, 1.05)
    image[outer] = muscle
    image[left] = blood
    papillary = gaussian_filter(rng.standard_normal(shape), (1.0, 1.5, 1.5)) > 0.17
    image[left & papillary & (distance > 0.45 * radius)] = (blood + muscle) / 2
    return _acquire(rng, image, (0.3, 1.0, 1.0)), label


def atrium(number: int) -> Case:
    """Draw the image and the label [z, y, x] of a volume; class 1 is the left atrium with veins."""
    rng = np.random.default_rng([3, number])
    axes = [np.linspace(-1, 1, side) for side in ATRIUM_SHAPE]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    grid = grid + 0.12 * np.stack([_smooth(rng, ATRIUM_SHAPE, 12.0) for _ in range(3)])
    grid -= rng.uniform(-0.15, 0.15, 3)[:, None, None, None]
    body = (grid / rng.uniform(0.28, 0.5, 3)[:, None, None, None]) ** 2
    inside = body.sum(0) < 1.0
    for side, end in product((-1.0, 1.0), (-1.0, 1.0)):  # two veins on each side
        inside |= _vein(rng, grid, side, end)

    blood = rng.uniform(0.6, 1.0)
    muscle = blood * rng.uniform(0.25, 0.65)
    image = _surroundings(rng, ATRIUM_SHAPE, blood, muscle)
    wall = gaussian_filter(inside.astype(float), 1.5) > 0.08
    image[wall] = blood * rng.uniform(0.3, 0.7)
    image[inside] = blood
    return _acquire(rng, image, (0.8, 0.8, 0.8)), inside.astype(np.uint8)


def _plane(rng: Generator, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return row and column coordinates around the center, distorted by a smooth random field."""
    axes = [np.linspace(-0.75, 0.75, side) for side in shape[1:]]
    row, column = np.meshgrid(*axes, indexing="ij")
    strength = rng.uniform(0.02, 0.07)
    row = row + strength * _smooth(rng, shape, 9.0)
    return row, column + strength * _smooth(rng, shape, 9.0)


def _place_heart(rng: Generator, row: Array, column: Array, level: Array) -> tuple[Array, Array]:
    """Transform coordinates to those of a heart that is shifted, tilted and rotated."""
    tilt = rng.uniform(-0.15, 0.15, 2)
    row = row - rng.uniform(-0.15, 0.15) - tilt[0] * level
    column = column - rng.uniform(-0.1, 0.2) - tilt[1] * level
    angle = rng.uniform(-0.7, 0.7)
    cos, sin = np.cos(angle), np.sin(angle)
    return row * cos - column * sin, row * sin + column * cos


def _right_ventricle(rng: Generator, row: Array, column: Array, taper: Array) -> Mask:
    """Return an ellipse around the origin."""
    width = rng.uniform(0.18, 0.3) * taper
    height = rng.uniform(0.28, 0.45) * taper
    inside: Mask = (column / width) ** 2 + (row / height) ** 2 < 1.0
    return inside


def _vein(rng: Generator, grid: Array, side: float, end: float) -> Mask:
    """Return a tube from the center of the atrium outwards; `side` and `end` give its direction."""
    direction = np.array([end * rng.uniform(0.2, 0.7), rng.uniform(-0.2, 0.6), side])
    direction /= np.linalg.norm(direction)
    along = np.tensordot(direction, grid, 1)
    across = np.sqrt(np.maximum((grid**2).sum(0) - along**2, 0.0))
    radius = rng.uniform(0.09, 0.15)
    length = rng.uniform(0.5, 0.75)
    inside: Mask = (across < radius) & (along > 0) & (along < length)
    return inside


def _smooth(rng: Generator, shape: tuple[int, ...], sigma: float) -> Array:
    """Draw a smooth random field with zero mean and unit standard deviation."""
    sigmas = [min(sigma, side / 2) for side in shape]
    field: Array = gaussian_filter(rng.standard_normal(shape), sigmas, mode="wrap")
    field -= field.mean()
    return field / max(float(field.std()), 1e-9)


def _surroundings(rng: Generator, shape: tuple[int, ...], blood: float, muscle: float) -> Array:
    """Draw tissue, air, and round organs as bright as blood, some with a wall as dark as muscle."""
    image = rng.uniform(0.15, 0.6) + rng.uniform(0.03, 0.1) * _smooth(rng, shape, 2.0)
    image[_smooth(rng, shape, 8.0) > rng.uniform(0.3, 1.0)] = rng.uniform(0.0, 0.1)
    axes = [np.arange(side) / max(shape) for side in shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    per_axis = (-1, *(1,) * len(shape))
    for _ in range(rng.integers(2, 6)):
        center = rng.uniform(0.0, 1.0, len(shape)) * np.array(shape) / max(shape)
        stretch = rng.uniform(0.7, 1.4, len(shape))
        offset = (grid - center.reshape(per_axis)) * stretch.reshape(per_axis)
        distance = np.sqrt((offset**2).sum(0))
        radius = rng.uniform(0.04, 0.12)
        if rng.random() < 0.5:
            image[distance < radius + rng.uniform(0.02, 0.06)] = muscle
        image[distance < radius] = blood * rng.uniform(0.7, 1.1)
    return image


def _acquire(rng: Generator, image: Array, blur: tuple[float, ...]) -> NDArray[np.int16]:
    """Imitate a scanner: add blur, shading, an unknown intensity curve and noise."""
    sigmas = [rng.uniform(0.5, 1.0) * sigma for sigma in blur]
    image = gaussian_filter(np.clip(image, 0.0, 1.2), sigmas)
    image = image * np.exp(rng.uniform(0.05, 0.3) * _smooth(rng, image.shape, 16.0))
    image = np.maximum(image, 0.0) ** rng.uniform(0.65, 1.5)
    image = image + rng.uniform(0.02, 0.06) * rng.standard_normal(image.shape)
    return np.rint(1000.0 * np.maximum(image, 0.0)).astype(np.int16)
