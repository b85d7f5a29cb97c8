"""Stack the channels of an image that are in several files, on the grid of the first one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from crkd_cli.data.alignment import align
from crkd_cli.data.cases import ImageFile
from crkd_cli.data.raw.formats import Volume
from crkd_cli.data.raw.geometry import Affine
from crkd_cli.errors import CrkdError

HALF = 0.5  # voxels


def stack(volumes: Sequence[Volume], images: Sequence[ImageFile]) -> Volume:
    """Return the volume [C, *S] of `volumes` [1, *S], which were read from `images`.

    Channels on another grid than the first are interpolated linearly in space; beyond their edges
    they have their smallest value. Raises CrkdError, which names a file, if the files do not state
    where their voxels are, or do not overlap.
    """
    first = volumes[0]
    if len(volumes) == 1:
        return first
    channels = []
    is_resampled = False
    for volume, image in zip(volumes, images, strict=True):
        channel = align(volume.array[0], volume.geometry, first)
        if channel is None:
            channel = _resample(volume, first, image.path, images[0].path)
            is_resampled = True
        channels.append(channel)
    return replace(first, array=np.stack(channels), is_resampled=is_resampled)


def _resample(volume: Volume, like: Volume, path: Path, first: Path) -> NDArray[Any]:
    """Return the channel [*S] in `volume`, read from `path`, on the grid of `like`, the `first`."""
    source, target = _affine(volume), _affine(like)
    if source is None or target is None or len(source) != len(target):
        raise CrkdError(
            f"{path} has shape {volume.size}, the first channel {first} {like.size}, and the files "
            "do not state where their voxels are; resample it to the first channel"
        )
    to_index = np.linalg.inv(source) @ target
    array, overlaps = _interpolate(volume.array[0], to_index, like.size, like.z_last)
    if not overlaps:
        raise CrkdError(
            f"{path} does not overlap the first channel {first}: it has {volume.geometry}; the "
            f"first channel has {like.geometry}; correct the header, or remove the case"
        )
    return array


def _affine(volume: Volume) -> Affine | None:
    """Return the square affine of a file, or None if it does not state where its voxels are."""
    if volume.geometry is None or not volume.geometry.affines:
        return None
    affine = volume.geometry.affines[0]
    is_square = affine.shape[1] == len(affine) + 1  # else a slice in space
    if not is_square or np.linalg.matrix_rank(affine[:, :-1]) < len(affine):
        return None
    return np.vstack([affine, [0] * len(affine) + [1]])


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
        places = matrix[:, 1:-1] @ plane + matrix[:, :1] * number + matrix[:, -1:]
        values = ndimage.map_coordinates(channel, places, dtype, order=1, mode="nearest")
        outside = ((places < -HALF) | (places > last + HALF)).any(axis=0)
        values[outside] = lowest
        target[...] = values.reshape(size[1:])
        overlaps |= not outside.all()
    return result, overlaps
