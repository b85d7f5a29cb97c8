"""Arrange the slices of a DICOM series, or the frames of a file, to a volume."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw.geometry import Affine, affine_from

MAX_TURN = 1e-3  # between the unit vectors of two slices
MAX_STRETCH = 1e-3  # relative difference between their pixel sizes
MAX_SHIFT = 0.5  # pixels in plane, from the first slice to the last
MAX_OFFSET = 0.25  # of the distance of slices: how far one may lie from its place
SAME_PLACE_MM = 1e-3

Vector = NDArray[np.float64]


class Frame(NamedTuple):
    """Where a slice lies. None: not stated."""

    position: tuple[float, ...] | None  # of the center of its first pixel: x, y, z in mm, LPS
    orientation: tuple[float, ...] | None  # the directions of a row, and of a column
    spacing: tuple[float, ...] | None  # mm between rows, and between columns
    distance: float | None  # mm to the next slice


class Stack(NamedTuple):
    """How slices form a volume."""

    order: tuple[int, ...]  # of the given slices
    spacing: tuple[float, ...] | None = None  # mm, x first; None: not stated
    affine: Affine | None = None  # None: not stated, or 2D
    problem: str = ""  # why they form none: the rest of a sentence that starts with their name
    places: tuple[float, ...] = ()  # mm along the normal, in the given order


def arrange(frames: Sequence[Frame], are_ordered: bool = False) -> Stack:
    """Return how `frames` form a volume, sorted along their common normal.

    With `are_ordered`, frames without positions are a volume in the given order.
    """
    first = frames[0]
    in_plane = None if first.spacing is None else (first.spacing[1], first.spacing[0])
    if in_plane is not None and min(in_plane) <= 0:
        in_plane = None
    if len(frames) == 1:
        return Stack((0,), in_plane)
    given = tuple(range(len(frames)))
    if are_ordered and all(frame.position is None for frame in frames):
        if in_plane is None or not first.distance:
            return Stack(given)
        return Stack(given, (*in_plane, first.distance))
    problem = _mixed(frames)
    if problem:
        return Stack(given, problem=problem)
    assert first.orientation is not None
    assert in_plane is not None
    return _along_normal(frames, np.array(first.orientation).reshape(2, 3), in_plane)


def _mixed(frames: Sequence[Frame]) -> str:
    """Return why frames are not parallel slices of one size, if they are not."""
    if any(frame.position is None or frame.orientation is None for frame in frames):
        return "has slices that do not state their positions; convert it to NIfTI"
    if any(frame.spacing is None or min(frame.spacing) <= 0 for frame in frames):
        return "has slices that do not state the size of their pixels; convert it to NIfTI"
    orientations = np.array([frame.orientation for frame in frames], dtype=np.float64)
    if np.abs(orientations - orientations[0]).max() > MAX_TURN:
        return "has slices of several orientations; put those of one orientation into a folder"
    spacings = np.array([frame.spacing for frame in frames], dtype=np.float64)
    if np.abs(spacings / spacings[0] - 1).max() > MAX_STRETCH:
        return "has slices with pixels of several sizes; put those of one size into a folder"
    return ""


def _along_normal(frames: Sequence[Frame], axes: Vector, in_plane: tuple[float, float]) -> Stack:
    given = tuple(range(len(frames)))
    if not np.allclose(axes @ axes.T, np.eye(2), atol=10 * MAX_TURN):
        return Stack(given, problem="has slices with a damaged orientation; convert it to NIfTI")
    normal = np.cross(*axes)
    positions = np.array([frame.position for frame in frames], dtype=np.float64)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    sorted_positions, sorted_along = positions[order], along[order]
    steps = np.diff(sorted_along)
    problem = (
        _duplicates(steps) or _tilt(sorted_positions, axes, in_plane) or _gaps(sorted_along, steps)
    )
    places = tuple(along.tolist())
    indices = tuple(order.tolist())
    if problem:
        return Stack(indices, problem=problem, places=places)
    step = (sorted_along[-1] - sorted_along[0]) / len(steps)
    spacing = (*in_plane, float(step))
    origin = tuple(sorted_positions[0].tolist())
    direction = np.column_stack([*axes, normal])
    return Stack(indices, spacing, affine_from(spacing, origin, direction), places=places)


def _duplicates(steps: Vector) -> str:
    count = int((steps < SAME_PLACE_MM).sum())
    if not count:
        return ""
    return (
        f"has several slices at the same position ({count + 1} or more); "
        "put one of each position into a folder"
    )


def _tilt(positions: Vector, axes: Vector, in_plane: tuple[float, float]) -> str:
    shift = np.abs(axes @ (positions[-1] - positions[0])) / in_plane
    if shift.max() <= MAX_SHIFT:
        return ""
    normal = np.cross(*axes)
    way = positions[-1] - positions[0]
    angle = np.degrees(np.arctan2(np.linalg.norm(axes @ way), abs(normal @ way)))
    return (
        f"was scanned with a tilted gantry (its slices are shifted by {angle:.1f}°); "
        "convert it to NIfTI with dcm2niix, which corrects the tilt"
    )


def _gaps(along: Vector, steps: Vector) -> str:
    """Return what is wrong with the distances between slices, if something is."""
    regular = np.linspace(along[0], along[-1], len(along))
    step = float(np.sort(steps)[(len(steps) - 1) // 2])
    if np.abs(along - regular).max() <= MAX_OFFSET * step:
        return ""
    missing = int(np.rint(steps / step - 1).clip(min=0).sum())
    is_whole = np.abs(steps / step - np.rint(steps / step)).max() <= MAX_OFFSET
    if missing and is_whole:
        widest = float(steps.max())
        return (
            f"lacks {missing} slice{'' if missing == 1 else 's'}: the distance of slices is "
            f"{step:.3g} mm, but {widest:.3g} mm between two of them; copy the missing files"
        )
    return (
        f"has slices at irregular distances, from {steps.min():.3g} to {steps.max():.3g} mm; "
        "resample it to NIfTI"
    )
