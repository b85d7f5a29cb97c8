"""Synthetic scans in folders, for commands in the documentation."""

from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

SHAPE = (32, 32, 16)  # x, y, z
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def add_scans(folder: Path, images: int = 16, labels: int = 13, new: int = 2) -> None:
    """Write MR-like volumes of a bright ball to folder/my-scans and folder/new-scans.

    The first `labels` of the images have labels.
    """
    source = folder / "my-scans"
    for place in (source / "images", source / "labels", folder / "new-scans"):
        place.mkdir(parents=True)
    for number in range(images + new):
        image, label = _ball(number)
        name = f"scan{number:02d}.nii.gz"
        place = source / "images" if number < images else folder / "new-scans"
        _write(image, place / name)
        if number < labels:
            _write(label, source / "labels" / name)


def _ball(seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return an image and its label [x, y, z]."""
    rng = np.random.default_rng(seed)
    center, radius = rng.uniform(0.4, 0.6, 3) * SHAPE, rng.uniform(4, 7)
    places = np.stack(np.indices(SHAPE), axis=-1)
    label = np.linalg.norm(places - center, axis=-1) < radius
    image = 100 + 80 * label + rng.normal(0, 20, SHAPE)
    return image.astype(np.float32), label.astype(np.uint8)


def _write(array: NDArray[np.float32] | NDArray[np.uint8], path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
