"""Read and write HDF5 files with the arrays `image` and `label`.

Arrays are [y, x], [z, y, x], or [y, x, 3] for 8-bit RGB.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.errors import CrkdError

SUFFIXES = (".h5", ".hdf5")


def read(path: Path, name: str) -> NDArray[Any]:
    """Read the array `name` as [C, *S]."""
    import h5py

    with h5py.File(path) as file:
        dataset = _numbers(file, path, name)
        channels = _layout(dataset)[0] if name == "image" else 1
        array = dataset[()]
    return np.moveaxis(array, -1, 0) if channels == 3 else array[None]


def layout(path: Path) -> tuple[int, int, bool]:
    """Return (channels, spatial axes) of `image`, and whether the file contains a `label`."""
    import h5py

    with h5py.File(path) as file:
        return *_layout(_numbers(file, path, "image")), "label" in file


def write(path: Path, label: NDArray[np.uint8]) -> None:
    """Write `label`; the same array always gives the same bytes."""
    import h5py

    content = BytesIO()  # not directly to disk: the HDF5 library crashes when the disk fills up
    with h5py.File(content, "w") as file:
        file.create_dataset("label", data=label, compression="gzip", track_times=False)
    path.write_bytes(content.getbuffer())


def _numbers(file: Any, path: Path, name: str) -> Any:
    """Return the array `name` of an open file. Raises CrkdError if it contains no numbers."""
    if name not in file:
        existing = ", ".join(sorted(file)) or "nothing"
        raise CrkdError(f"{path} has no array {name!r}, only {existing}")
    dtype = getattr(file[name], "dtype", None)  # HDF5 groups have none
    if dtype is None or dtype.kind not in "biuf" or not file[name].size:
        raise CrkdError(
            f"{path} contains no numbers in {name!r}; write an array of pixels or voxels there"
        )
    return file[name]


def _layout(dataset: Any) -> tuple[int, int]:
    if dataset.ndim == 3 and dataset.shape[-1] == 3 and dataset.dtype == np.uint8:
        return 3, 2
    if dataset.ndim in (2, 3):
        return 1, dataset.ndim
    raise ValueError(f"{dataset.name} has {dataset.ndim} axes, expected 2 or 3")
