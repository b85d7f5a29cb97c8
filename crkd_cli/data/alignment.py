"""Whether a label lies on its image."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from crkd_cli.data.grid import Turn
from crkd_cli.data.raw.formats import LabelMap, Volume
from crkd_cli.errors import CrkdError


def align_label(label: LabelMap, volume: Volume, path: Path, image: Path) -> NDArray[Any]:
    """Return the values [*S] of the label file `path` in the axes of its image, the file `image`.

    A label with other axes, such as one that a program has turned to RAS, is turned. Raises
    CrkdError unless every voxel of it lies on the same voxel of the image.
    """
    if _lies_on(label, volume):
        return label.array
    turned = _turn(label, volume)
    if turned is not None and _lies_on(turned, volume):
        return turned.array
    if label.array.shape != volume.size:
        raise CrkdError(
            f"{path} has shape {label.array.shape}, its image {volume.size}; "
            "image and label must match"
        )
    raise CrkdError(
        f"{path} lies up to {_distance(label, volume):.3g} mm away from its image {image}: it has "
        f"{label.geometry}; its image has {volume.geometry}; resample or repair the label"
    )


def _lies_on(label: LabelMap, volume: Volume) -> bool:
    if label.array.shape != volume.size:
        return False
    geometries = (volume.geometry, label.geometry)
    spacings = [geometry.spacing for geometry in geometries if geometry and geometry.spacing]
    smallest = min(spacings[0]) if spacings else 1.0
    return _distance(label, volume) <= smallest / 2


def _distance(label: LabelMap, volume: Volume) -> float:
    """Return the largest distance in mm between a voxel of a label and that of its image."""
    if label.geometry is None or volume.geometry is None:
        return 0.0
    size = volume.size if volume.z_last else volume.size[::-1]
    return label.geometry.distance(volume.geometry, size)


def _turn(label: LabelMap, volume: Volume) -> LabelMap | None:
    """Return a label with the axes of its image; None if the files do not state them."""
    if label.geometry is None or volume.geometry is None or volume.z_last:
        return None
    orientations = label.geometry.orientation, volume.geometry.orientation
    if None in orientations:
        return None
    turn = Turn.between(*orientations, dims=3)
    geometry = turn.turn_geometry(label.geometry, label.array.shape)
    return replace(label, array=turn.apply(label.array), geometry=geometry)
