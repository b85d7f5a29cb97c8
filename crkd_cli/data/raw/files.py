"""Image files in and out: PNG, JPG, TIFF, NIfTI, NRRD, MHA and h5, with the geometry needed to write a mask back.

Arrays are [C, *S] (images) and [*S] (labels); *S is [y, x] or [z, y, x], or [x, y, z] where `z_last` is asked for.
h5 files hold `image` (and `label`) as they are to be used: their axes are never turned.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw.nifti import check_nifti, write_whole
from crkd_cli.errors import CrkdError
from crkd_cli.paths import atomic_write

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MEDICAL = (".nii.gz", ".nii", ".nrrd", ".mha")
H5 = (".h5", ".hdf5")
SUFFIXES = (*PICTURES, *MEDICAL, *H5)

Geometry = dict[
    str, tuple[float, ...]
]  # spacing, origin, direction as SimpleITK states them: x first


@dataclass(frozen=True)
class Volume:
    """An image as read, and what `write_label` needs to lay a mask over it."""

    array: NDArray[Any]  # [C, *S]
    spacing_mm: tuple[float, ...] | None  # per axis of *S; None where the file does not say
    size: tuple[int, ...]  # *S of the file, in the array's axis order
    geometry: Geometry | None = None  # of a medical file, in its own axis order
    z_last: bool = False  # the array is [x, y, z] and the file [z, y, x]


def read_image(path: Path, z_last: bool = False) -> Volume:
    """The image in `path`, values untouched. Raises CrkdError: missing, empty, truncated, of no known format."""
    with _readable(path) as kind:
        if kind in PICTURES:
            array = _read_picture(path, label=False)
            return Volume(array, None, array.shape[1:])
        if kind in H5:
            array = _read_h5(path, "image")
            return Volume(array, None, array.shape[1:])
        array, geometry = _read_medical(path)
        spacing = geometry["spacing"][::-1]
        if z_last and len(spacing) == 3:
            array, spacing = array.transpose(0, 3, 2, 1), spacing[::-1]
        return Volume(array, spacing, array.shape[1:], geometry, z_last and len(spacing) == 3)


def read_label(path: Path, z_last: bool = False) -> NDArray[Any]:
    """[*S] integer label values as the file has them. Raises CrkdError as read_image, and for colors and fractions."""
    with _readable(path) as kind:
        if kind in PICTURES:
            array = _read_picture(path, label=True)
        elif kind in H5:
            array = _read_h5(path, "label")
        else:
            array, _ = _read_medical(path)
            array = array.transpose(0, 3, 2, 1) if z_last and array.ndim == 4 else array
    if len(array) == 3:  # three equal channels, or nearly: JPEG
        if (array.max(0).astype(int) - array.min(0)).max() > 32:
            raise CrkdError(
                f"{path} is a color picture, not a label map; save it with one number per class"
            )
        array = array[:1]
    if len(array) != 1:
        raise CrkdError(f"{path} has {len(array)} channels; a label map has one")
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iu":
        whole = np.rint(array)
        if not np.array_equal(whole, array):
            raise CrkdError(
                f"{path} holds fractions, not class numbers; save the label map with whole numbers"
            )
        array = whole.astype(np.int64)
    label: NDArray[Any] = array[0]
    return label


def write_label(path: Path, label: NDArray[np.uint8], like: Volume) -> None:
    """Write the class numbers `label` [*S] over the image `like`: same size, spacing, origin and direction.

    The format is that of `path`'s suffix (see label_name). Raises CrkdError if it cannot be written.
    """
    if label.shape != like.size:
        raise CrkdError(f"cannot write {path}: the mask is {label.shape}, the image {like.size}")
    kind = suffix(path)
    with atomic_write(path) as temporary:
        if kind in PICTURES:
            _write_picture(temporary, label, kind)
        elif kind in H5:
            _write_h5(temporary, label)
        else:
            _write_medical(temporary, label.transpose(2, 1, 0) if like.z_last else label, like)


def label_name(path: Path) -> str:
    """The file name of the mask of image `path`: the same, but PNG for JPG, which would blur class numbers."""
    return path.name if suffix(path) not in (".jpg", ".jpeg") else f"{stem(path)}.png"


def suffix(path: Path) -> str:
    """The known suffix of `path` in lower case, `.nii.gz` in one piece; "" if it is none."""
    return next((kind for kind in SUFFIXES if path.name.lower().endswith(kind)), "")


def stem(path: Path) -> str:
    """The name of `path` without its known suffix."""
    return path.name[: len(path.name) - len(suffix(path))]


def probe(path: Path) -> tuple[int, int, bool]:
    """(channels, spatial axes, has a label inside) from the header alone. Raises CrkdError as read_image does."""
    with _readable(path) as kind:
        if kind in PICTURES:
            with _picture(path) as picture:
                return (
                    (1 if picture.mode in _GRAY else 3),
                    (3 if getattr(picture, "n_frames", 1) > 1 else 2),
                    False,
                )
        if kind in H5:
            import h5py

            with h5py.File(path) as file:
                channels, dims = _h5_layout(_h5_dataset(file, path, "image"))
                return channels, dims, "label" in file
        reader = _header(path)
        return reader.GetNumberOfComponents(), reader.GetDimension(), False


def geometry(path: Path) -> Geometry | None:
    """Spacing, origin and direction from the header of a medical file, x first; None for other formats."""
    with _readable(path) as kind:
        if kind not in MEDICAL:
            return None
        reader = _header(path)
        return {
            "spacing": reader.GetSpacing(),
            "origin": reader.GetOrigin(),
            "direction": reader.GetDirection(),
        }


@contextmanager
def _readable(path: Path) -> Iterator[str]:
    """Yields the known suffix; turns what readers raise into one line that a user can act on."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise CrkdError(f"{path} cannot be read: {error.strerror or error}") from None
    if not head:
        raise CrkdError(f"{path} is empty; copy or download it again")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise CrkdError(f"{path} is a web page saved under an image's name; download it again")
    kind = suffix(path)
    if not kind:
        raise CrkdError(f"{path} is of no known format; use one of {', '.join(SUFFIXES)}")
    try:
        yield kind
    except (CrkdError, MemoryError):
        raise
    except Exception as error:  # damaged files fail in many ways, all of which mean the same
        reason = " ".join(str(error).split())[-160:] or type(error).__name__
        advice = (
            "copy it again"
            if path.name.endswith(kind)
            else f"let its name end in {kind}, or copy it again"
        )
        raise CrkdError(
            f"{path} cannot be read, it may be truncated or of another format ({reason}); {advice}"
        ) from None


# ── pictures ──

_GRAY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")


def _read_picture(path: Path, label: bool) -> NDArray[Any]:
    """[C, y, x], or [1, pages, y, x] for a file of several pages. A palette's indices are a label's values."""
    with _picture(path) as picture:
        pages = [_page(picture, label, at) for at in range(getattr(picture, "n_frames", 1))]
    if len(pages) == 1:
        return pages[0]
    if {page.shape for page in pages} != {(1, *pages[0].shape[1:])}:
        raise CrkdError(
            f"{path} has pages of different size or in color; a volume needs gray pages of one size"
        )
    return np.stack([page[0] for page in pages])[None]


@contextmanager
def _picture(path: Path) -> Iterator[Any]:
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # stitched scans are large
            yield picture
    except Image.DecompressionBombError as error:
        raise CrkdError(
            f"{path} is too large for a picture ({error}); cut it into smaller ones"
        ) from None


def _page(picture: Any, label: bool, at: int) -> NDArray[Any]:
    picture.seek(at)
    if picture.mode == "P" and label:
        return np.asarray(picture)[None]
    if picture.mode == "LA":
        picture = picture.convert("L")
    if picture.mode in _GRAY:
        array = np.asarray(picture)
        return array[None].astype(np.uint8) if array.dtype == bool else array[None]
    return np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)


def _write_picture(path: Path, label: NDArray[np.uint8], kind: str) -> None:
    from PIL import Image

    pages = [Image.fromarray(page) for page in (label if label.ndim == 3 else label[None])]
    if kind == ".png":
        pages[0].save(path, format="PNG")
    else:
        pages[0].save(
            path, format="TIFF", compression="tiff_deflate", save_all=True, append_images=pages[1:]
        )


# ── h5 ──


def _h5_dataset(file: Any, path: Path, name: str) -> Any:
    """The dataset `name` of numbers in an open h5 file. Raises CrkdError."""
    if name not in file:
        raise CrkdError(
            f"{path} has no dataset called {name!r}, only {', '.join(sorted(file)) or 'nothing'}"
        )
    kind = getattr(getattr(file[name], "dtype", None), "kind", "O")  # a group has no dtype
    if kind not in "biuf" or not file[name].size:
        raise CrkdError(
            f"{path} holds no numbers in {name!r}; write an array of pixels or voxels there"
        )
    return file[name]


def _h5_layout(dataset: Any) -> tuple[int, int]:
    """(channels, spatial axes) of an `image` or `label` dataset: [y, x], [z, y, x], or [y, x, 3] uint8."""
    if dataset.ndim == 3 and dataset.shape[-1] == 3 and dataset.dtype == np.uint8:
        return 3, 2
    if dataset.ndim in (2, 3):
        return 1, dataset.ndim
    raise ValueError(f"{dataset.name} has {dataset.ndim} axes, expected 2 or 3")


def _read_h5(path: Path, name: str) -> NDArray[Any]:
    import h5py

    with h5py.File(path) as file:
        dataset = _h5_dataset(file, path, name)
        array, channels = dataset[()], _h5_layout(dataset)[0] if name == "image" else 1
    return np.moveaxis(array, -1, 0) if channels == 3 else array[None]


def _write_h5(path: Path, label: NDArray[np.uint8]) -> None:
    import h5py

    content = BytesIO()  # in memory first: the library crashes when a disk fills up under it
    with h5py.File(content, "w") as file:
        file.create_dataset("label", data=label, compression="gzip", track_times=False)
    path.write_bytes(content.getbuffer())


# ── medical files ──


def _sitk() -> Any:
    sitk: Any = import_module("SimpleITK")
    # ACDC's NIfTI headers make it print two warnings a file; it reads their true spacing all the same.
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk


def _header(path: Path) -> Any:
    reader = _sitk().ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _read_medical(path: Path) -> tuple[NDArray[Any], Geometry]:
    """[C, *S] and the geometry as SimpleITK states it (x first)."""
    sitk = _sitk()
    if suffix(path).startswith(".nii") and (bad := check_nifti(path)):
        raise CrkdError(f"{path} holds {bad} NaN or infinite values; repair or remove it")
    image = sitk.ReadImage(str(path))
    if image.GetDimension() not in (2, 3):
        raise CrkdError(
            f"{path} has {image.GetDimension()} axes; give images of two or three (one frame of a film)"
        )
    array: NDArray[Any] = sitk.GetArrayFromImage(image)
    array = np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array[None]
    return array, {
        "spacing": image.GetSpacing(),
        "origin": image.GetOrigin(),
        "direction": image.GetDirection(),
    }


def _write_medical(path: Path, label: NDArray[np.uint8], like: Volume) -> None:
    sitk = _sitk()
    image = sitk.GetImageFromArray(np.ascontiguousarray(label))
    if like.geometry is not None:
        image.SetSpacing(like.geometry["spacing"])
        image.SetOrigin(like.geometry["origin"])
        image.SetDirection(like.geometry["direction"])
    write_whole(image, path)
