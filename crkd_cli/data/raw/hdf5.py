"""Read and write HDF5 files with the arrays `image` and `label`.

Arrays are [y, x], [z, y, x], or [y, x, 3] for 8-bit RGB. Several channels are the first axis of
`image`, or an array each. Files are read in a separate process,
because damaged ones can crash the HDF5 library.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw.isolation import call_isolated
from crkd_cli.data.raw.limits import check_declared_size
from crkd_cli.errors import CrkdError

SUFFIXES = (".h5", ".hdf5")


def read_image(path: Path, channels: Sequence[str]) -> NDArray[Any]:
    """Read `image`, or the arrays with the names of `channels`, as [C, *S]."""
    array: NDArray[Any]
    axis, array = call_isolated(load_image, path, list(channels))
    return array[None] if axis is None else np.moveaxis(array, axis, 0)


def read_label(path: Path) -> NDArray[Any]:
    """Read `label` as [1, *S]."""
    array: NDArray[Any]
    (array,) = call_isolated(load_label, path)
    return array[None]


def layout(path: Path, channels: Sequence[str]) -> tuple[int, tuple[int, ...], bool, bool]:
    """Return the number of channels and *S, and whether there is a `label`, and color."""
    has_label, is_color, count, *size = call_isolated(describe, path, list(channels))
    return count, tuple(size), has_label, is_color


def load_image(path: Path, channels: Sequence[str]) -> tuple[int | None, NDArray[Any]]:
    """Return the axis of the channels, if there is one, and the array."""
    import h5py

    with h5py.File(path) as file:
        arrays = [_load(file, path, name) for name in _image_names(file, channels)]
        axis = _channel_axis(arrays, path, len(channels))
        return (0, np.stack(arrays)) if len(arrays) > 1 else (axis, arrays[0])


def load_label(path: Path) -> tuple[NDArray[Any]]:
    """Return `label` as stored."""
    import h5py

    with h5py.File(path) as file:
        return (_load(file, path, "label"),)


def describe(path: Path, channels: Sequence[str]) -> tuple[int, ...]:
    """Return whether there is a `label`, and color, and the channels and *S of the image."""
    import h5py

    with h5py.File(path) as file:
        has_label = file.get("label", getlink=True) is not None
        arrays = [_numbers(file, path, name) for name in _image_names(file, channels)]
        axis = _channel_axis(arrays, path, len(channels))
        size = list(arrays[0].shape)
        count = len(arrays) if axis is None else size.pop(axis)
        return has_label, axis == -1, count, *size


def write(path: Path, label: NDArray[Any]) -> None:
    """Write `label`; the same array always gives the same bytes."""
    import h5py

    content = BytesIO()  # not directly to disk: the HDF5 library crashes when the disk fills up
    with h5py.File(content, "w") as file:
        file.create_dataset("label", data=label, compression="gzip", track_times=False)
    path.write_bytes(content.getbuffer())


def _image_names(file: Any, channels: Sequence[str]) -> Sequence[str]:
    """Return the names of the arrays that contain the image: `image`, else one per channel."""
    if file.get("image", getlink=True) is not None:
        return ("image",)
    has_channels = any(file.get(name, getlink=True) is not None for name in channels)
    return channels if has_channels else ("image",)


def _load(file: Any, path: Path, name: str) -> NDArray[Any]:
    """Return the array `name` of an open file."""
    dataset = _numbers(file, path, name)
    check_declared_size(path, dataset.nbytes, compressed=dataset.chunks is not None)
    array: NDArray[Any] = dataset[()]
    return array


def _numbers(file: Any, path: Path, name: str) -> Any:
    """Return the array `name` of an open file.

    Raises CrkdError if there is none, or if its numbers are in another file.
    """
    import h5py

    link = file.get(name, getlink=True)
    if link is None:
        existing = sorted(file)[:5]
        reason = f"{path} has no array {name!r}, only {', '.join(existing) or 'nothing'}"
        if name == "image" and (others := [other for other in existing if other != "label"]):
            channels = ", ".join(f"{{name: {other}}}" for other in others)
            reason += f"; if these are channels, list them in dataset.yaml: channels: [{channels}]"
        raise CrkdError(reason)
    if not isinstance(link, h5py.HardLink):
        raise CrkdError(f"{path} has a link in place of {name!r}; copy the array into the file")
    dataset = file[name]
    dtype = getattr(dataset, "dtype", None)  # HDF5 groups have none
    if dtype is None or dtype.kind not in "biuf" or not dataset.size:
        raise CrkdError(
            f"{path} contains no numbers in {name!r}; write an array of pixels or voxels there"
        )
    if dataset.external or dataset.is_virtual:
        raise CrkdError(f"{path} refers to other files in {name!r}; copy the array into the file")
    if dataset.id.get_storage_size() == 0:
        raise CrkdError(f"{path} has an array {name!r} that was never written; write it again")
    return dataset


def _channel_axis(images: Sequence[Any], path: Path, channels: int) -> int | None:
    """Return the axis of the channels of the first of `images`: 0, −1 for color, or None."""
    shapes = [image.shape for image in images]
    first, shape = images[0], shapes[0]
    if len(set(shapes)) > 1:
        raise CrkdError(f"{path} has channels of different shapes: {', '.join(map(str, shapes))}")
    if len(images) == 1 and 1 < channels == shape[0] and len(shape) in (3, 4):
        return 0
    if len(images) == 1 and len(shape) == 3 and shape[-1] == 3 and first.dtype == np.uint8:
        return -1
    if len(shape) not in (2, 3):
        raise CrkdError(
            f"{path} has an image of shape {shape} instead of two or three axes; if the first of "
            "four is that of channels, list all in dataset.yaml: channels: [{name: T1}, …]"
        )
    return None
