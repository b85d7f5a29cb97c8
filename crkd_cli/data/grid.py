"""Turn the axes of volumes to an orientation, and resample images and labels to a grid.

Arrays are [C, *S] or [*S] with *S = [z, y, x] or [y, x]. The edges of two grids of an image align:
voxel i of n lies at (i + 1/2) / n of a side, as in `F.interpolate(align_corners=False)`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from crkd_cli.data.plan import AXIS_OF_LETTER, NATIVE, Plan
from crkd_cli.data.raw.formats import Volume
from crkd_cli.data.raw.geometry import Geometry
from crkd_cli.data.raw.limits import SMALL_BYTES, available_memory
from crkd_cli.errors import CrkdError

T = TypeVar("T")

# From this ratio of two spacings on, slices are too far apart to interpolate between them.
ANISOTROPIC = 3.0
_LINEAR, _CUBIC = 1, 3  # orders of splines
_NEGLIGIBLE = 1e-7  # weights below it: cubic splines are local to 30 voxels


@dataclass(frozen=True)
class Turn:
    """A permutation of the axes of arrays [..., *S], and flips; no voxel is changed."""

    axes: tuple[int, ...]  # for every new axis, the old axis
    flips: tuple[bool, ...]  # for every new axis, whether it runs the other way

    @classmethod
    def between(cls, old: str | None, new: str | None, dims: int) -> Self:
        """Return the turn between orientations such as RAS, which name the axes x, y and z.

        If one of them is not stated, nothing is turned.
        """
        if old is None or new is None:
            return cls(tuple(range(dims)), (False,) * dims)
        lines = [AXIS_OF_LETTER[code] for code in old[::-1]]
        axes = tuple(lines.index(AXIS_OF_LETTER[code]) for code in new[::-1])
        flips = tuple(old[::-1][axis] != code for axis, code in zip(axes, new[::-1], strict=True))
        return cls(axes, flips)

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a view of `array` [..., *S] with turned axes."""
        return self._flip(array.transpose(_permutation(array, self.axes)))

    def undo(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a view of `array` [..., *S], which `apply` turns back to it."""
        old_axes = [self.axes.index(axis) for axis in range(len(self.axes))]
        return self._flip(array).transpose(_permutation(array, old_axes))

    def reorder(self, values: Sequence[T]) -> tuple[T, ...]:
        """Return `values`, one per axis of *S such as a spacing, in the order of the new axes."""
        return tuple(values[axis] for axis in self.axes)

    def turn_geometry(self, geometry: Geometry, size: Sequence[int]) -> Geometry:
        """Return the geometry of an array [*S] of `size` after it is turned."""
        dims = len(self.axes)
        old_index = np.eye(dims + 1)  # of a voxel, from its new index; x first
        old_index[:dims] = 0
        for new, (old, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            row = old_index[dims - 1 - old]
            row[dims - 1 - new] = -1 if flip else 1
            row[dims] = size[old] - 1 if flip else 0
        spacing = geometry.spacing and self.reorder(geometry.spacing[::-1])[::-1]
        affines = tuple(affine @ old_index for affine in geometry.affines)
        return replace(geometry, spacing=spacing, affines=affines)

    def _flip(self, array: NDArray[Any]) -> NDArray[Any]:
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        flipped: NDArray[Any] = array[(slice(None),) * (array.ndim - len(steps)) + steps]
        return flipped


@dataclass(frozen=True)
class StoredImage:
    """An image as the store contains it, and what leads back to its file."""

    array: NDArray[Any]  # [C, *S]
    spacing_mm: tuple[float, ...] | None  # per axis of *S
    turn: Turn  # from the axes of the file to *S
    # *S of the file in the order of the stored axes, and its spacing
    native_size: tuple[int, ...]
    native_spacing_mm: tuple[float, ...] | None


def keep_grid(volume: Volume, array: NDArray[Any]) -> StoredImage:
    """Return `array`, which is stored for `volume`: with its axes, and perhaps resized."""
    size, spacing = volume.size, volume.spacing_mm
    turn = Turn.between(None, None, len(size))
    stored_spacing = spacing and resampled_spacing(size, spacing, array.shape[1:])
    return StoredImage(array, stored_spacing, turn, size, spacing)


def bring_to_plan(volume: Volume, plan: Plan, path: Path) -> StoredImage:
    """Turn and resample a volume to the grid of a complete plan.

    A file that does not state its orientation is not turned. Raises CrkdError if its spacing is
    needed but unknown, or if memory runs out.
    """
    orientation = None if volume.geometry is None else volume.geometry.orientation
    target = None if plan.orientation == NATIVE else plan.orientation
    turn = Turn.between(orientation, target, len(volume.size))
    array = turn.apply(volume.array)
    size, spacing = turn.reorder(volume.size), volume.spacing_mm and turn.reorder(volume.spacing_mm)
    stored_spacing = spacing
    if isinstance(plan.spacing, tuple):
        if spacing is None:
            raise CrkdError(
                f"{path} does not state its spacing, but volumes are resampled to "
                f"{_product(plan.spacing)} mm; state it in its header, or prepare the dataset with "
                "--spacing"
            )
        new_spacing = target_spacing(spacing, plan.spacing)
        new_size = resampled_size(size, spacing, new_spacing)
        _check_memory(path, new_size, plan.spacing)
        array = resample_image(array, new_size, coarse_axis(spacing, new_spacing))
        stored_spacing = resampled_spacing(size, spacing, new_size)
    return StoredImage(np.ascontiguousarray(array), stored_spacing, turn, size, spacing)


def target_spacing(spacing: Sequence[float], planned: Sequence[float]) -> tuple[float, ...]:
    """Return the spacing of a volume on the grid of a plan.

    If the plan has that of slices only, slices keep their distance.
    """
    return (*spacing[: len(spacing) - len(planned)], *planned)


def resampled_size(
    size: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> tuple[int, ...]:
    """Return how many voxels an image of `size` and `spacing` has in the spacing `target`."""
    sides = zip(size, spacing, target, strict=True)
    return tuple(max(1, round(count * old / new)) for count, old, new in sides)


def resampled_spacing(
    size: Sequence[int], spacing: Sequence[float], new_size: Sequence[int]
) -> tuple[float, ...]:
    """Return the spacing of an image after it is resampled to `new_size`."""
    sides = zip(size, spacing, new_size, strict=True)
    return tuple(old * count / new if count != new else old for count, old, new in sides)


def coarse_axis(spacing: Sequence[float], target: Sequence[float]) -> int | None:
    """Return the axis on which slices are too far apart to interpolate between them, if any.

    It is that of the file, or else that of the grid.
    """
    for steps in (spacing, target):
        largest = max(steps)
        if largest >= ANISOTROPIC * min(steps):
            axis = list(steps).index(largest)
            others = [step for i, step in enumerate(steps) if i != axis]
            return axis if largest >= ANISOTROPIC * max(others) else None
    return None


def resample_image(image: NDArray[Any], size: Sequence[int], coarse: int | None) -> NDArray[Any]:
    """Resample `image` [C, *S] to `size`: by cubic splines, and the nearest slice on axis `coarse`.

    Where voxels become larger, it is smoothed first: else fine noise and textures would become
    coarse ones. The result has the range of the image.
    """
    if image.shape[1:] == tuple(size):
        return image
    result = np.empty((len(image), *size), image.dtype)
    for channel, resampled in zip(image, result, strict=True):
        values = channel
        if coarse is not None:
            values = _nearest(values, size[coarse], coarse)
        values = np.ascontiguousarray(values, np.float32)
        values = _apply(_axis_weights(values.shape, size, _CUBIC), values)
        resampled[...] = np.clip(values, channel.min(), channel.max(), out=values)
    return result


def resample_label(label: NDArray[Any], size: Sequence[int], coarse: int | None) -> NDArray[Any]:
    """Resample class numbers `label` [*S] to `size`: the class that has the largest share.

    The shares of the classes are interpolated linearly, and taken from the nearest slice on axis
    `coarse`. Of equal ones the first class wins.
    """
    if label.shape == tuple(size):
        return label
    if coarse is not None:
        label = _nearest(label, size[coarse], coarse)
    weights = _axis_weights(label.shape, size, _LINEAR)
    result = np.zeros(size, label.dtype)
    largest = np.zeros(size, np.float32)
    boxes = [tuple(slice(0, side) for side in label.shape), *ndimage.find_objects(label)]
    for k, box in enumerate(boxes):
        if box is not None:
            _add_class(k, label, box, weights, result, largest)
    return result


def _add_class(
    k: int,
    label: NDArray[Any],
    box: tuple[slice, ...],
    weights: Sequence[Any],
    result: NDArray[Any],
    largest: NDArray[np.float32],
) -> None:
    """Write class `k` to `result` where its share is more than `largest`, and its share there.

    Only the part that is influenced by `box`, which contains the class, is calculated.
    """
    parts, influenced = [], []
    for matrix, side in zip(weights, box, strict=True):
        columns = matrix[:, side]
        rows = np.flatnonzero(np.diff(columns.indptr))
        if not rows.size:  # smaller than the distance between two new voxels
            return
        parts.append(columns[rows[0] : rows[-1] + 1])
        influenced.append(slice(rows[0], rows[-1] + 1))
    share = _apply(parts, (label[box] == k).astype(np.float32))
    region = tuple(influenced)
    wins = share > largest[region]
    result[region][wins] = k
    largest[region][wins] = share[wins]


def _check_memory(path: Path, size: Sequence[int], spacing: Sequence[float]) -> None:
    """Raise CrkdError if a volume is too large after it is resampled."""
    available = available_memory()
    needed = 3 * np.dtype(np.float32).itemsize * math.prod(size)  # before, in between, and after
    if available is not None and needed > max(SMALL_BYTES, available):
        raise CrkdError(
            f"{path} does not fit into memory: resampled to {_product(spacing)} mm, it has "
            f"{_product(size)} voxels; correct its spacing, or state a larger one in plan"
        )


def _nearest(array: NDArray[Any], count: int, axis: int) -> NDArray[Any]:
    """Resample `axis` of an array [*S] to `count` voxels, by the voxel that contains the center."""
    old = array.shape[axis]
    centers = (2 * np.arange(count) + 1) * old // (2 * count)
    return array if count == old else array.take(centers, axis)


def _axis_weights(shape: Sequence[int], size: Sequence[int], order: int) -> list[Any]:
    """Return a sparse matrix [new, old] per axis: splines of `order`, smoothed first if cubic.

    Splines of several axes are those of every axis in turn, which is many times faster.
    """
    matrices = []
    for old, new in zip(shape, size, strict=True):
        weights = np.eye(old)
        if new != old:
            if order == _CUBIC and new < old:  # as in scikit-image
                weights = ndimage.gaussian_filter1d(
                    weights, (old / new - 1) / 2, axis=0, mode="nearest"
                )
            scale = (new / old, 1)
            weights = ndimage.zoom(weights, scale, order=order, mode="nearest", grid_mode=True)
            weights[np.abs(weights) < _NEGLIGIBLE] = 0
        matrices.append(sparse.csr_matrix(weights.astype(np.float32)))
    return matrices


def _apply(weights: Sequence[Any], array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply every axis of `array` [*S] by its matrix: the last two slice by slice."""
    *first, rows, columns = weights
    size = [matrix.shape[0] for matrix in (rows, columns)]
    slices = array.reshape(-1, *array.shape[-2:])
    result = np.empty((len(slices), *size), np.float32)
    for values, resampled in zip(slices, result, strict=True):
        resampled[...] = (columns @ (rows @ values).T).T
    for matrix in first:
        result = (matrix @ result.reshape(len(result), -1)).reshape(-1, *size)
    return result


def _product(values: Sequence[float]) -> str:
    return " × ".join(f"{value:.6g}" for value in values)


def _permutation(array: NDArray[Any], axes: Sequence[int]) -> list[int]:
    """Return the permutation of all axes of `array` that permutes the last ones by `axes`."""
    others = array.ndim - len(axes)
    return [*range(others), *(others + axis for axis in axes)]
