"""Draw images of many organs as a dataset of a user's own, 2D or 3D.

    python -m benchmarks.organs FOLDER [--organs 12] [--cases 80] [--size 64 64]

Writes FOLDER/images and FOLDER/labels, PNG files in 2D and NIfTI files in 3D, which
`crkd prepare-data NAME --source FOLDER` reads. The organs are ellipsoids that keep their place in
the body, and some touch. The largest has a hundred times the area, or volume, of the smallest. In
every case the smaller ones may be absent; place, size, brightness and contrast vary. Case n depends
only on n and on the number of organs.

Shapes: *S spatial axes (two or three), D of them.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float64]
OCCUPIED = 0.45  # of the body, by all organs
RATIO = 100.0  # of the largest organ to the smallest
ABSENT = 0.2  # probability, of all but the largest third


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--organs", type=int, default=12)
    parser.add_argument("--cases", type=int, default=80)
    parser.add_argument("--size", type=int, nargs="+", default=[64, 64], help="y x, or z y x")
    args = parser.parse_args()
    write(args.folder, args.organs, args.cases, args.size)


def write(folder: Path, organs: int, cases: int, size: Sequence[int]) -> None:
    """Write images and labels of `cases` cases."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(cases):
        image, label = draw(number, organs, size)
        for part, array in (("images", image), ("labels", label)):
            path = folder / part / f"case{number:03d}"
            if len(size) == 2:
                Image.fromarray(array).save(path.with_suffix(".png"))
            else:  # z, y, x in memory; x, y, z in the file
                nibabel.save(nibabel.Nifti1Image(array.T, np.eye(4)), path.with_suffix(".nii.gz"))


def draw(
    number: int, organs: int, size: Sequence[int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the image [*S] and the label [*S] of a case; the largest organ is class 1."""
    body = _body(organs, len(size))
    rng = np.random.default_rng([number, organs, len(size)])
    grid = _grid(rng, size)
    inside = (grid**2).sum(0) < 1.0
    tissue, contrast = 0.4, rng.uniform(0.5, 1.0)
    image = np.where(inside, tissue, 0.05)
    label = np.zeros(tuple(size), np.uint8)
    for k in range(organs):
        center = body.centers[k] + rng.normal(0.0, 0.02, len(size))
        axes = body.radii[k] * body.shapes[k] * rng.uniform(0.85, 1.15)
        level = tissue + contrast * (body.levels[k] + rng.normal(0.0, 0.02) - tissue)
        if k >= organs // 3 and rng.random() < ABSENT:
            continue
        per_axis = (-1, *(1,) * len(size))
        offset = (grid - center.reshape(per_axis)) / axes.reshape(per_axis)
        members = (offset**2).sum(0) < 1.0
        image[members], label[members] = level, k + 1
    image = gaussian_filter(image, 0.5) * np.exp(0.1 * _smooth(rng, size, max(size) / 4))
    image = image ** rng.uniform(0.8, 1.25) + rng.normal(0.0, 0.02, tuple(size))
    return np.rint(200 * image.clip(0.0, 1.27)).astype(np.uint8), label


@dataclass(frozen=True)
class _Body:
    """What all cases have in common, in a body of radius 1."""

    centers: Array  # [organs, D]
    radii: Array  # [organs]
    shapes: Array  # [organs, D], factors of the radius on every axis, whose product is 1
    levels: Array  # [organs]


def _body(organs: int, dims: int) -> _Body:
    """Place the organs, the largest first, each where it fits and is closest to the others."""
    rng = np.random.default_rng([organs, dims])
    sizes = RATIO ** -np.linspace(0.0, 1.0, organs)
    radii = (OCCUPIED * sizes / sizes.sum()) ** (1.0 / dims)
    shapes = np.exp(rng.uniform(-0.25, 0.25, (organs, dims)))
    shapes /= np.prod(shapes, axis=1, keepdims=True) ** (1.0 / dims)
    levels = rng.permutation(np.linspace(0.15, 1.0, organs))
    centers = np.zeros((organs, dims))
    for k in range(organs):
        places = rng.uniform(-0.8, 0.8, (4000, dims))
        places = places[np.linalg.norm(places, axis=1) < 0.9 - radii[k]]
        gaps = np.linalg.norm(places[:, None] - centers[:k], axis=2) - radii[:k] - radii[k]
        nearest = gaps.min(axis=1, initial=1.0)
        centers[k] = places[np.where(nearest > 0.0, nearest, 2.0 - nearest).argmin()]
    return _Body(centers, radii, shapes, levels)


def _grid(rng: Generator, size: Sequence[int]) -> Array:
    """Return the coordinates [D, *S] of every voxel in a body that is moved, turned and bent."""
    axes = [np.linspace(-1.15, 1.15, side) for side in size]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    grid += 0.03 * np.stack([_smooth(rng, size, max(size) / 6) for _ in size])
    per_axis = (-1, *(1,) * len(size))
    grid -= rng.uniform(-0.06, 0.06, len(size)).reshape(per_axis)
    grid *= rng.uniform(0.95, 1.15)
    angle = rng.uniform(-0.25, 0.25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    grid[-2:] = np.tensordot(turn, grid[-2:], 1)
    return grid


def _smooth(rng: Generator, size: Sequence[int], sigma: float) -> Array:
    """Draw a smooth random field [*S] with standard deviation 1."""
    field: Array = gaussian_filter(rng.standard_normal(tuple(size)), sigma, mode="wrap")
    return (field - field.mean()) / field.std()


if __name__ == "__main__":
    main()
