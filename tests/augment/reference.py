"""The strong view of a volume written plainly with NumPy and SciPy, one volume at a time."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float32]


def strong_volume(image: Array, rng: np.random.Generator) -> Array:
    """Apply a random bias field and gamma to `image` [X, Y, Z], and a blur half the time."""
    if rng.random() < 0.8:
        image = image * bias_field(image.shape, rng.uniform(-0.5, 0.5, (4, 4, 4)))
        image = np.sign(image) * np.abs(image) ** np.exp(rng.uniform(-0.5, 0.5))
    if rng.random() < 0.5:
        image = gaussian_filter(image, rng.uniform(0.1, 2.0, 3))
    return np.asarray(image, np.float32)


def bias_field(shape: Sequence[int], coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return exp of a polynomial of degree n − 1 on a grid from −1 to 1; coefficients [n, n, n]."""
    x, y, z = np.meshgrid(*(np.linspace(-1.0, 1.0, side) for side in shape), indexing="ij")
    field = np.zeros(tuple(shape))
    for i, j, k in product(range(len(coefficients)), repeat=3):
        if i + j + k < len(coefficients):
            field += coefficients[i, j, k] * x**i * y**j * z**k
    return np.exp(field)
