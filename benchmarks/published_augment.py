"""Augmentation as published: one sample at a time on the CPU, with numpy, scipy and PIL.

| images       | weak                                              | strong                           |
|--------------|---------------------------------------------------|----------------------------------|
| slices (2D)  | half: 90° turn and flip; a quarter: ±20°; resize  | brightness and contrast 0.5, blur |
| volumes (3D) | random crop, 90° turn in plane and flip           | bias field, gamma e^±0.5, blur    |
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from scipy.ndimage import gaussian_filter, rotate, zoom

Draw = np.random.Generator
Array = NDArray[np.float32]
Label = NDArray[np.uint8]


def weak_slice(
    image: Array, label: Label | None, size: Sequence[int], draw: Draw
) -> tuple[Array, Label | None]:
    """image and label [H, W] under one random geometry, at `size`."""
    both = [image] if label is None else [image, label]
    if draw.random() < 0.5:
        both = _turn_and_flip(both, draw)
    elif draw.random() < 0.5:
        angle = draw.uniform(-20.0, 20.0)
        both = [rotate(one, angle, order=0, reshape=False) for one in both]
    both = [
        zoom(one, [new / old for new, old in zip(size, one.shape, strict=True)], order=0)
        for one in both
    ]
    return both[0], None if label is None else both[1]


def strong_slice(image: Array, draw: Draw) -> Array:
    """image [H, W] in [0, 1] with other intensities, by way of an 8-bit picture."""
    picture = Image.fromarray((image * 255).astype(np.uint8))
    if draw.random() < 0.8:
        picture = ImageEnhance.Brightness(picture).enhance(draw.uniform(0.5, 1.5))
        picture = ImageEnhance.Contrast(picture).enhance(draw.uniform(0.5, 1.5))
    if draw.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(draw.uniform(0.1, 2.0)))
    return np.asarray(picture, np.float32) / 255.0


def weak_volume(
    image: Array, label: Label | None, size: Sequence[int], draw: Draw
) -> tuple[Array, Label | None]:
    """A random crop of `size` from image and label [X, Y, Z], turned in the first two axes and flipped."""
    lacks = [max(new - old, 0) for new, old in zip(size, image.shape, strict=True)]
    pads = [(lack // 2, lack - lack // 2) for lack in lacks]
    both = [np.pad(one, pads) for one in ([image] if label is None else [image, label])]
    starts = [draw.integers(0, old - new + 1) for new, old in zip(size, both[0].shape, strict=True)]
    crop = tuple(slice(start, start + new) for start, new in zip(starts, size, strict=True))
    both = _turn_and_flip([one[crop] for one in both], draw)
    return both[0], None if label is None else both[1]


def strong_volume(image: Array, draw: Draw) -> Array:
    """image [X, Y, Z] under a random bias field and gamma, and a blur half the time."""
    if draw.random() < 0.8:
        coefficients = draw.uniform(-0.5, 0.5, (4, 4, 4))
        image = image * bias_field(image.shape, coefficients)
        image = np.sign(image) * np.abs(image) ** np.exp(draw.uniform(-0.5, 0.5))
    if draw.random() < 0.5:
        image = gaussian_filter(image, draw.uniform(0.1, 2.0, 3))
    return np.asarray(image, np.float32)


def bias_field(shape: Sequence[int], coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp of a polynomial of degree n − 1 in coordinates from −1 to 1; coefficients [n, n, n]; term by term on the full grid."""
    x, y, z = np.meshgrid(*(np.linspace(-1.0, 1.0, side) for side in shape), indexing="ij")
    field = np.zeros(tuple(shape))
    for i, j, k in product(range(len(coefficients)), repeat=3):
        if i + j + k < len(coefficients):
            field += coefficients[i, j, k] * x**i * y**j * z**k
    return np.exp(field)


def _turn_and_flip(arrays: list[NDArray], draw: Draw) -> list[NDArray]:
    turns, axis = draw.integers(0, 4), draw.integers(0, 2)
    if arrays[0].shape[0] != arrays[0].shape[1]:
        turns -= turns % 2
    return [np.flip(np.rot90(array, turns), axis).copy() for array in arrays]
