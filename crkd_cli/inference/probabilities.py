"""Write class probabilities with the geometry of their image."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw.formats import Volume
from crkd_cli.inference.label_tables import Classes
from crkd_cli.paths import atomic_write


def write_probabilities(
    path: Path, probabilities: NDArray[np.float16], classes: Classes, volume: Volume
) -> None:
    """Write an .npz file with these arrays, of K classes; NaN stands for what is not known.

    probabilities  float16 [K, z, y, x] or [K, y, x]
    values, names  [K]: of the classes, the background first; values as in the mask
    spacing        in mm, in the order of the axes: z, y, x or y, x
    affine         [4, 4] of a volume: from voxel x, y, z to mm, to the right, anterior and
                   superior, as in nibabel

    Raises CrkdError if it cannot be written.
    """
    values, names = zip(*classes, strict=True)
    spacing = volume.spacing_mm or (np.nan,) * len(volume.size)
    if volume.z_last:
        probabilities, spacing = probabilities.transpose(0, 3, 2, 1), spacing[::-1]
    affine = np.full((4, 4), np.nan)
    stated = () if volume.geometry is None else volume.geometry.affines
    if stated and stated[0].shape == (3, 4):
        affine = np.vstack([stated[0], (0, 0, 0, 1)])
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            probabilities=np.ascontiguousarray(probabilities),
            values=np.array(values, dtype=np.int64),
            names=np.array(names),
            spacing=np.array(spacing, dtype=np.float64),
            affine=affine,
        )
