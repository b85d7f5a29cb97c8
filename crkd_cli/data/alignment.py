"""Whether a label or a channel lies on an image."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from crkd_cli.data.grid import Turn
from crkd_cli.data.raw.formats import LabelMap, Volume
from crkd_cli.data.raw.geometry import Geometry
from crkd_cli.errors import CrkdError


def align_label(label: LabelMap, volume: Volume, path: Path, image: Path) -> NDArray[Any]:
    """Return the values [*S] of the label file `path` in the axes of its image, the file `image`.

    A label with other axes, such as one that a program has turned to RAS, is turned. Raises
    CrkdError unless every voxel of it lies on the same voxel of the image.
    """
    aligned = align(label.array, label.geometry, volume)
    if aligned is not None:
        return aligned
    if label.array.shape != volume.size:
        raise CrkdError(
            f"{path} has shape {label.array.shape}, its image {volume.size}; "
            "image and label must match"
        )
    raise CrkdError(
        f"{path} lies up to {_distance(label.geometry, volume):.3g} mm away from its image "
        f"{image}: it has {label.geometry}; its image has {volume.geometry}; resample or repair "
        "the label"
    )


def align(array: NDArray[Any], geometry: Geometry | None, volume: Volume) -> NDArray[Any] | None:
    """Return `array` [*S] in the axes of `volume`, or None if its voxels lie elsewhere."""
    if _lies_on(array, geometry, volume):
        return array
    if geometry is None or volume.geometry is None or volume.z_last:
        return None
    orientations = geometry.orientation, volume.geometry.orientation
    if None in orientations:
        return None
    turn = Turn.between(*orientations, dims=3)
    turned = turn.apply(array)
    is_aligned = _lies_on(turned, turn.turn_geometry(geometry, array.shape), volume)
    return turned if is_aligned else None


def _lies_on(array: NDArray[Any], geometry: Geometry | None, volume: Volume) -> bool:
    if array.shape != volume.size:
        return False
    geometries = (volume.geometry, geometry)
    spacings = [known.spacing for known in geometries if known and known.spacing]
    smallest = min(spacings[0]) if spacings else 1.0
    return _distance(geometry, volume) <= smallest / 2


def _distance(geometry: Geometry | None, volume: Volume) -> float:
    """Return the largest distance in mm between a voxel of a file and that of the image."""
    if geometry is None or volume.geometry is None:
        return 0.0
    size = volume.size if volume.z_last else volume.size[::-1]
    return geometry.distance(volume.geometry, size)
