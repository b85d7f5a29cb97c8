"""Read and write NIfTI, NRRD and MHA files with SimpleITK."""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw import nifti
from crkd_cli.errors import CrkdError

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")


class Geometry(NamedTuple):
    """Where the voxels lie in space, in mm, in SimpleITK's axis order (x first)."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]  # matrix, row by row


def read(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Read the voxels as [C, *S] (z first), and the geometry."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        nonfinite = nifti.count_nonfinite(path)
        if nonfinite:
            raise CrkdError(
                f"{path} contains {nonfinite} NaN or infinite values; repair or remove it"
            )
    image = _simpleitk().ReadImage(str(path))
    if image.GetDimension() not in (2, 3):
        raise CrkdError(
            f"{path} has {image.GetDimension()} axes; an image has two or three (extract one frame)"
        )
    array: NDArray[Any] = _simpleitk().GetArrayFromImage(image)
    channels_last = image.GetNumberOfComponentsPerPixel() > 1
    array = np.moveaxis(array, -1, 0) if channels_last else array[None]
    return array, Geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def layout(path: Path) -> tuple[int, int]:
    """Return (channels, spatial axes) from the header."""
    reader = _simpleitk().ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader.GetNumberOfComponents(), reader.GetDimension()


def write(path: Path, array: NDArray[Any], geometry: Geometry | None = None) -> None:
    """Write [*S] (z first). Raises OSError if the file was not written completely."""
    sitk = _simpleitk()
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    if geometry is not None:
        image.SetSpacing(geometry.spacing)
        image.SetOrigin(geometry.origin)
        image.SetDirection(geometry.direction)
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
        _check_written(path, array)
    except (RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[-80:]
        raise OSError(
            f"the file was not written completely, is the disk full? ({reason})"
        ) from None


def _check_written(path: Path, array: NDArray[Any]) -> None:
    """Raise EOFError or ValueError if the file lacks voxels: ITK overlooks a full disk."""
    if path.name.endswith((".nii", ".nii.gz")):
        nifti.count_nonfinite(path)
        return
    sitk = _simpleitk()
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    if not np.array_equal(written, array):
        raise EOFError("the voxels differ from those that were written")


def _simpleitk() -> Any:
    sitk: Any = import_module("SimpleITK")  # its type annotations are incomplete
    # ACDC's NIfTI headers cause two warnings per file, although their spacing is read correctly.
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk
