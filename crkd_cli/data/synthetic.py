"""Synthetic hearts for the demonstration and the tests: short-axis stacks with three structures, and 3D atria.

Drawn, not simulated: shapes, contrast, shading and noise differ from case to case, and other bright round things lie
around, so that a few labeled cases do not show all there is. Case n of a generator depends on n alone.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float64]
Case = tuple[NDArray[np.int16], NDArray[np.uint8]]
SHORT_AXIS_SHAPE = (6, 64, 64)  # z, y, x
ATRIUM_SHAPE = (40, 64, 64)


def short_axis(number: int) -> Case:
    """Case `number`: image [z, y, x] and labels (0 background, 1 right ventricle, 2 myocardium, 3 left ventricle)."""
    draw = np.random.default_rng([2, number])
    shape = SHORT_AXIS_SHAPE
    level = np.linspace(0.0, 1.0, shape[0])[:, None, None]  # 0 at the base, 1 at the apex
    row, column = _plane(draw, shape)
    taper = np.sqrt(1.0 - (draw.uniform(0.75, 0.95) * level) ** 2)
    lean = draw.uniform(-0.15, 0.15, 2)
    row, column = (
        row - draw.uniform(-0.15, 0.15) - lean[0] * level,
        column - draw.uniform(-0.1, 0.2) - lean[1] * level,
    )
    row, column = _turn(row, column, draw.uniform(-0.7, 0.7))

    radius = draw.uniform(0.17, 0.33) * taper
    wall = draw.uniform(0.07, 0.15) * (0.6 + 0.4 * taper)
    reach = np.hypot(row * draw.uniform(0.9, 1.15), column)
    left, outer = reach < radius, reach < radius + wall
    center = -(radius + wall) * draw.uniform(0.85, 1.15)
    width, height = draw.uniform(0.18, 0.3) * taper, draw.uniform(0.28, 0.45) * taper
    right = ((column - center) / width) ** 2 + (row / height) ** 2 < 1.0
    right &= ~outer & (level < draw.uniform(0.75, 1.05))
    labels = np.select([left, outer, right], [3, 2, 1], 0).astype(np.uint8)

    blood = draw.uniform(0.6, 1.0)
    muscle = blood * draw.uniform(0.25, 0.65)
    image = _surroundings(draw, shape, blood, muscle)
    image[right] = blood * draw.uniform(0.75, 1.05)
    image[outer] = muscle
    image[left] = blood
    papillary = gaussian_filter(draw.standard_normal(shape), (1.0, 1.5, 1.5)) > 0.17
    image[left & papillary & (reach > 0.45 * radius)] = (blood + muscle) / 2
    return _acquire(draw, image, (0.3, 1.0, 1.0)), labels


def atrium(number: int) -> Case:
    """Case `number`: image [z, y, x] and labels (1 = left atrium with the roots of its veins)."""
    draw = np.random.default_rng([3, number])
    grid = np.stack(
        np.meshgrid(*(np.linspace(-1, 1, side) for side in ATRIUM_SHAPE), indexing="ij")
    )
    grid = grid + 0.12 * np.stack([_smooth(draw, ATRIUM_SHAPE, 12.0) for _ in range(3)])
    grid -= draw.uniform(-0.15, 0.15, 3)[:, None, None, None]
    body = (grid / draw.uniform(0.28, 0.5, 3)[:, None, None, None]) ** 2
    inside = body.sum(0) < 1.0
    for side in (-1.0, 1.0):  # four veins, two on each side
        for end in (-1.0, 1.0):
            way = np.array([end * draw.uniform(0.2, 0.7), draw.uniform(-0.2, 0.6), side])
            way /= np.linalg.norm(way)
            along = np.tensordot(way, grid, 1)
            across = np.sqrt(np.maximum((grid**2).sum(0) - along**2, 0.0))
            inside |= (
                (across < draw.uniform(0.09, 0.15))
                & (along > 0)
                & (along < draw.uniform(0.5, 0.75))
            )
    labels = inside.astype(np.uint8)

    blood = draw.uniform(0.6, 1.0)
    image = _surroundings(draw, ATRIUM_SHAPE, blood, blood * draw.uniform(0.25, 0.65))
    image[gaussian_filter(inside.astype(float), 1.5) > 0.08] = blood * draw.uniform(
        0.3, 0.7
    )  # the wall
    image[inside] = blood
    return _acquire(draw, image, (0.8, 0.8, 0.8)), labels


def _plane(draw: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Row and column coordinates about the center, bent by a smooth random displacement."""
    row, column = np.meshgrid(
        *(np.linspace(-0.75, 0.75, side) for side in shape[1:]), indexing="ij"
    )
    bend = draw.uniform(0.02, 0.07)
    return row + bend * _smooth(draw, shape, 9.0), column + bend * _smooth(draw, shape, 9.0)


def _turn(row: Array, column: Array, angle: float) -> tuple[Array, Array]:
    return row * np.cos(angle) - column * np.sin(angle), row * np.sin(angle) + column * np.cos(
        angle
    )


def _smooth(draw: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Array:
    """A smooth random field with zero mean and unit standard deviation."""
    field: Array = gaussian_filter(
        draw.standard_normal(shape), [min(sigma, side / 2) for side in shape], mode="wrap"
    )
    field -= field.mean()
    return field / max(float(field.std()), 1e-9)


def _surroundings(
    draw: np.random.Generator, shape: tuple[int, ...], blood: float, muscle: float
) -> Array:
    """Tissue, air and organs, among them round ones as bright as blood, some with a wall as dark as muscle."""
    image = draw.uniform(0.15, 0.6) + draw.uniform(0.03, 0.1) * _smooth(draw, shape, 2.0)
    image[_smooth(draw, shape, 8.0) > draw.uniform(0.3, 1.0)] = draw.uniform(0.0, 0.1)
    grid = np.stack(np.meshgrid(*(np.arange(side) / max(shape) for side in shape), indexing="ij"))
    for _ in range(draw.integers(2, 6)):
        center = draw.uniform(0.0, 1.0, len(shape)) * np.array(shape) / max(shape)
        stretch = draw.uniform(0.7, 1.4, len(shape))
        offset = (grid - center.reshape(-1, *(1,) * len(shape))) * stretch.reshape(
            -1, *(1,) * len(shape)
        )
        distance = np.sqrt((offset**2).sum(0))
        radius = draw.uniform(0.04, 0.12)
        if draw.random() < 0.5:
            image[distance < radius + draw.uniform(0.02, 0.06)] = muscle
        image[distance < radius] = blood * draw.uniform(0.7, 1.1)
    return image


def _acquire(draw: np.random.Generator, image: Array, blur: tuple[float, ...]) -> NDArray[np.int16]:
    """What a scanner makes of it: blur, shading, an unknown intensity curve, noise."""
    image = gaussian_filter(
        np.clip(image, 0.0, 1.2), [draw.uniform(0.5, 1.0) * sigma for sigma in blur]
    )
    image = image * np.exp(draw.uniform(0.05, 0.3) * _smooth(draw, image.shape, 16.0))
    image = np.maximum(image, 0.0) ** draw.uniform(0.65, 1.5)
    image = image + draw.uniform(0.02, 0.06) * draw.standard_normal(image.shape)
    return np.rint(1000.0 * np.maximum(image, 0.0)).astype(np.int16)
