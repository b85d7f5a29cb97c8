"""Read, write and resize PNG, JPG and TIFF files with Pillow."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crkd_cli.errors import CrkdError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
GRAY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")


def read(path: Path, as_label: bool = False) -> NDArray[Any]:
    """Read a picture as [C, y, x], or [1, z, y, x] if it has several pages.

    Of a label map with a palette, the indices are returned instead of the colors.
    """
    with _open(path) as picture:
        pages = [_page(picture, number, as_label) for number in range(_page_count(picture))]
    if len(pages) == 1:
        return pages[0]
    shapes = {page.shape for page in pages}
    if shapes != {(1, *pages[0].shape[1:])}:
        raise CrkdError(
            f"{path} has color pages or pages of different size; "
            "a volume needs gray pages of one size"
        )
    return np.stack([page[0] for page in pages])[None]


def layout(path: Path) -> tuple[int, int]:
    """Return (channels, spatial axes) from the header."""
    with _open(path) as picture:
        channels = 1 if picture.mode in GRAY_MODES else 3
        dims = 3 if _page_count(picture) > 1 else 2
    return channels, dims


def write(path: Path, label: NDArray[np.uint8], kind: str) -> None:
    """Write a label map [y, x], or [z, y, x] as the pages of a TIFF."""
    from PIL import Image

    planes = label if label.ndim == 3 else label[None]
    first, *others = (Image.fromarray(plane) for plane in planes)
    if kind == ".png":
        first.save(path, format="PNG")
    else:
        first.save(
            path, format="TIFF", compression="tiff_deflate", save_all=True, append_images=others
        )


def resize(
    array: NDArray[Any], size: tuple[int, ...], method: Literal["bilinear", "nearest"]
) -> NDArray[Any]:
    """Resize [C, H, W] or [H, W] to `size` (H, W).

    When shrinking, `bilinear` averages over the area that a new pixel covers.
    """
    from PIL import Image

    if array.shape[-2:] == size:
        return array
    if array.ndim == 3:
        return np.stack([resize(channel, size, method) for channel in array])
    resampling = Image.Resampling[method.upper()]
    height, width = size
    return np.asarray(Image.fromarray(array).resize((width, height), resampling))


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            # Stitched scans are legitimately large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield picture
    except Image.DecompressionBombError as error:
        raise CrkdError(
            f"{path} is too large for a picture ({error}); cut it into smaller ones"
        ) from None


def _page_count(picture: Any) -> int:
    return int(getattr(picture, "n_frames", 1))


def _page(picture: Any, number: int, as_label: bool) -> NDArray[Any]:
    """Return page `number` as [C, y, x]."""
    picture.seek(number)
    if picture.mode == "P" and as_label:
        return np.asarray(picture)[None]
    if picture.mode == "LA":
        picture = picture.convert("L")
    if picture.mode not in GRAY_MODES:
        return np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)
    array = np.asarray(picture)
    return array[None].astype(np.uint8) if array.dtype == bool else array[None]
