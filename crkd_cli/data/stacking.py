"""Stack the channels of an image that are in several files, on the grid of the first one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from crkd_cli.data.cases import ImageFile
from crkd_cli.data.raw.formats import Volume
from crkd_cli.data.raw.geometry import Affine
from crkd_cli.errors import CrkdError

HALF = 0.5  # voxels


def stack(volumes: list[Volume], images: Sequence[ImageFile]) -> Volume:
    """Return the volume [C, *S] of `volumes` [1, *S], which is emptied to save memory.

    Channels on another grid than the first are interpolated linearly in space; beyond their edges
    they have their smallest value. Raises CrkdError, which names a file of `images`, if the files
    do not state where their voxels are, or do not overlap.
    """
    first = volumes[0]
    if len(volumes) == 1:
        return first
    resampled = []
    for at, volume in enumerate(volumes[1:], start=1):
        if not _have_same_grid(first, volume):
            volumes[at] = _resample(volume, first, images[at], images[0])
            resampled.append(images[at].path)
    dtype = np.result_type(*(volume.array for volume in volumes))
    array = np.empty((len(volumes), *first.size), dtype)
    while volumes:
        channel = volumes.pop()
        array[len(volumes)] = channel.array[0]
    return replace(first, array=array, resampled=tuple(resampled))


def _have_same_grid(first: Volume, other: Volume) -> bool:
    """Tell whether the voxels of two files lie on each other, as far as the files state it."""
    if first.size != other.size:
        return False
    if first.geometry is None or other.geometry is None:
        return True
    size = first.size if first.z_last else first.size[::-1]
    steps = first.geometry.spacing or other.geometry.spacing or (1.0,)
    return first.geometry.distance(other.geometry, size) <= HALF * min(steps)


def _resample(volume: Volume, like: Volume, image: ImageFile, first: ImageFile) -> Volume:
    """Return `volume`, read from `image`, on the grid of `like`, read from `first`."""
    affines = [_affine(volume), _affine(like)]
    if affines[0] is None or affines[1] is None or len(affines[0]) != len(affines[1]):
        raise CrkdError(
            f"{image.path} has another grid than {first.path}, the first channel: shape "
            f"{volume.size} and {like.size}; the files do not state where their voxels are: "
            "resample it to the first channel"
        )
    to_index = np.linalg.inv(_square(affines[0])) @ _square(affines[1])
    array, overlaps = _interpolate(volume.array[0], to_index, like.size, like.z_last)
    if not overlaps:
        raise CrkdError(
            f"{image.path} does not overlap {first.path}, the first channel: it has "
            f"{volume.geometry}; the first channel has {like.geometry}; correct the header, or "
            "remove the case"
        )
    return replace(like, array=array[None])


def _affine(volume: Volume) -> Affine | None:
    """Return the positions of the voxels of a file; None if they are not stated in its space."""
    if volume.geometry is None or not volume.geometry.affines:
        return None
    affine = volume.geometry.affines[0]
    has_inverse = affine.shape[1] == len(affine) + 1 and np.linalg.matrix_rank(affine[:, :-1])
    return affine if has_inverse == len(affine) else None


def _square(affine: Affine) -> Affine:
    """Return an affine with the row 0, …, 0, 1."""
    last = np.zeros((1, affine.shape[1]))
    last[0, -1] = 1
    return np.vstack([affine, last])


def _interpolate(
    channel: NDArray[Any], to_index: Affine, size: Sequence[int], z_last: bool
) -> tuple[NDArray[Any], bool]:
    """Interpolate `channel` [*S] at the voxels of a grid of `size`, slice by slice.

    `to_index` maps an index of the grid to one of the channel, x first. Also returns whether a
    voxel of the grid is in the channel.
    """
    dims = channel.ndim
    order = [*range(dims)] if z_last else [*reversed(range(dims))]
    matrix = to_index[:dims, [*order, dims]][order]
    dtype = np.float32 if channel.dtype.itemsize <= 2 else np.result_type(channel, np.float32)
    lowest = channel.min()
    last = np.array(channel.shape)[:, None] - 1
    result = np.empty(size, dtype)
    plane = np.indices(size[1:]).reshape(dims - 1, -1)
    overlaps = False
    for number, target in enumerate(result):
        where = matrix[:, 1:-1] @ plane + matrix[:, :1] * number + matrix[:, -1:]
        values = ndimage.map_coordinates(channel, where, dtype, order=1, mode="nearest")
        outside = ((where < -HALF) | (where > last + HALF)).any(axis=0)
        values[outside] = lowest
        target[...] = values.reshape(size[1:])
        overlaps |= not outside.all()
    return result, overlaps
