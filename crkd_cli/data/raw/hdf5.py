"""Read and write HDF5 files with the arrays `image` and `label`.

Arrays are [y, x], [z, y, x], or [y, x, 3] for 8-bit RGB. Files are read in a separate process,
because damaged ones can crash the HDF5 library.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw.isolation import call_isolated
from crkd_cli.data.raw.limits import check_declared_size
from crkd_cli.errors import CrkdError

SUFFIXES = (".h5", ".hdf5")


def read(path: Path, name: str) -> NDArray[Any]:
    """Read the array `name` as [C, *S]."""
    array: NDArray[Any]
    channels, array = call_isolated(load, path, name)
    return np.moveaxis(array, -1, 0) if channels == 3 else array[None]


def layout(path: Path) -> tuple[int, tuple[int, ...], bool]:
    """Return the channels and *S of `image`, and whether the file contains a `label`."""
    has_label, channels, *size = call_isolated(describe, path)
    return channels, tuple(size), has_label


def load(path: Path, name: str) -> tuple[int, NDArray[Any]]:
    """Return the number of channels and the array `name` as stored."""
    import h5py

    with h5py.File(path) as file:
        dataset = _numbers(file, path, name)
        channels = _layout(dataset)[0] if name == "image" else 1
        check_declared_size(path, dataset.nbytes, compressed=dataset.chunks is not None)
        return channels, dataset[()]


def describe(path: Path) -> tuple[int, ...]:
    """Return whether the file contains a `label`, and the channels and *S of `image`."""
    import h5py

    with h5py.File(path) as file:
        has_label = file.get("label", getlink=True) is not None
        image = _numbers(file, path, "image")
        channels, dims = _layout(image)
        return has_label, channels, *image.shape[:dims]


def write(path: Path, label: NDArray[Any]) -> None:
    """Write `label`; the same array always gives the same bytes."""
    import h5py

    content = BytesIO()  # not directly to disk: the HDF5 library crashes when the disk fills up
    with h5py.File(content, "w") as file:
        file.create_dataset("label", data=label, compression="gzip", track_times=False)
    path.write_bytes(content.getbuffer())


def _numbers(file: Any, path: Path, name: str) -> Any:
    """Return the array `name` of an open file.

    Raises CrkdError if there is none, or if its numbers are in another file.
    """
    import h5py

    link = file.get(name, getlink=True)
    if link is None:
        existing = ", ".join(sorted(file)[:5]) or "nothing"
        raise CrkdError(f"{path} has no array {name!r}, only {existing}")
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


def _layout(dataset: Any) -> tuple[int, int]:
    if dataset.ndim == 3 and dataset.shape[-1] == 3 and dataset.dtype == np.uint8:
        return 3, 2
    if dataset.ndim in (2, 3):
        return 1, dataset.ndim
    raise ValueError(f"{dataset.name} has {dataset.ndim} axes, expected 2 or 3")
