"""Read and write NIfTI (`nifti`), NRRD (`nrrd`) and MetaImage files (`metaimage`).

Foreign files are read without native code, which could crash. SimpleITK writes NRRD and MetaImage.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw import metaimage, nifti, nrrd
from crkd_cli.data.raw.geometry import Geometry, decompose
from crkd_cli.data.raw.label_entries import LabelEntry, slicer_fields

SUFFIXES = (*nifti.SUFFIXES, *nrrd.SUFFIXES, *metaimage.SUFFIXES)


def read(path: Path, kind: str, channels: int = 0) -> tuple[NDArray[Any], Geometry]:
    """Read the voxels of a file with the suffix `kind` as [C, *S] (z first), and the geometry.

    The fourth axis of a NIfTI file is that of channels if it has as many as the dataset.
    """
    if kind in nifti.SUFFIXES:
        return nifti.read(path, channels)
    result: tuple[NDArray[Any], Geometry] = _reader(kind).read(path)
    return result


def layout(path: Path, kind: str, channels: int = 0) -> tuple[int, tuple[int, ...], Geometry, bool]:
    """Return the number of channels, *S (z first), the geometry, and whether they are colors.

    Like `read`, but from the header.
    """
    if kind in nifti.SUFFIXES:
        return nifti.layout(path, channels)
    result: tuple[int, tuple[int, ...], Geometry, bool] = _reader(kind).layout(path)
    return result


def data_file(header: Path, kind: str) -> Path | None:
    """Return the file with the voxels, if they are not in the file of the header."""
    if kind in nifti.SUFFIXES and kind != ".hdr":
        return None
    result: Path | None = _reader(kind).data_file(header)
    return result


def write(
    path: Path,
    array: NDArray[Any],
    kind: str,
    geometry: Geometry | None,
    labels: Sequence[LabelEntry] = (),
) -> None:
    """Write [*S] (z first) to one file. Raises OSError if it was not written completely.

    NIfTI and NRRD files contain the names and colors of the `labels`; MetaImage has no place.
    """
    if kind in nifti.SUFFIXES:
        nifti.write(path, array, geometry, labels)
        return
    sitk: Any = import_module("SimpleITK")  # its type annotations are incomplete
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    if geometry is not None and geometry.spacing is not None:
        image.SetSpacing(geometry.spacing)
    if geometry is not None and geometry.affines:
        spacing, origin, direction = decompose(geometry.affines[0])
        if len(direction) == array.ndim:
            image.SetSpacing(spacing)
            image.SetOrigin(origin)
            image.SetDirection(direction.ravel().tolist())
    if kind in nrrd.SUFFIXES:
        for key, text in slicer_fields(labels, array.shape[::-1]).items():
            image.SetMetaData(key, text)
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
        written, _ = read(path, kind)  # ITK overlooks a full disk
        if not np.array_equal(written[0], array):
            raise EOFError("the voxels differ from those that were written")
    except (RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[-80:]
        raise OSError(
            f"the file was not written completely, is the disk full? ({reason})"
        ) from None


def _reader(kind: str) -> ModuleType:
    return next(reader for reader in (nifti, nrrd, metaimage) if kind in reader.SUFFIXES)
