"""Read, write and resize PNG, JPG, TIFF, BMP and GIF files with Pillow.

The format is that of the content, not of the suffix. Pictures are rotated by their EXIF
orientation, as viewers show them. TIFF files, which a native library decodes, are read in a
separate process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw import content
from crkd_cli.data.raw.checksums import check_jpeg, check_png, check_tiff_page
from crkd_cli.data.raw.isolation import call_isolated
from crkd_cli.data.raw.limits import check_declared_size
from crkd_cli.errors import CrkdError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")
PLUGINS = ("PNG", "JPEG", "TIFF", "BMP", "GIF")
GRAY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")
COLOR_MODES = ("P", "PA", "RGB", "RGBA")
# The factors by which Pillow multiplies gray values of 2 and 4 bits.
STRETCH = {"L;2": 85, "L;4": 17}
ORIENTATION = 274  # EXIF; from 5 on, the axes are swapped
# Tags of a TIFF.
BITS_PER_SAMPLE = 258
SAMPLES_PER_PIXEL = 277
X_RESOLUTION = 282
SAMPLE_FORMAT = 339
UNSIGNED = 1
# JPEG is decoded at a half, a quarter … of its size if that is still so many times the size that
# the picture is resized to. The result differs by up to 2 of 255 levels (4 at extreme contrasts).
OVERSAMPLING = 2


class Picture(NamedTuple):
    """The content of a picture file."""

    array: NDArray[Any]  # [C, y, x], or [1, z, y, x] if it has several pages
    size: tuple[int, ...]  # *S of the file; that of `array`, unless it was decoded smaller
    dpi: tuple[float, float] | None  # x, y; None: not stated


def read(path: Path, as_label: bool = False, resized_to: tuple[int, ...] | None = None) -> Picture:
    """Read a picture: the pages of a TIFF as a volume, else the first frame.

    Of a label map with a palette, the indices are returned instead of the colors. If the picture is
    to be resized to `resized_to` (y, x), JPEG is decoded at a smaller size, which is faster.
    """
    if _kind(path) == content.TIFF:
        array, *dpi = call_isolated(decode, path, as_label)
        size = array.shape[1:]
    else:
        array, *dpi = decode(path, as_label, resized_to)
        size = array.shape[1:] if resized_to is None else layout(path)[1]
    return Picture(array, size, (dpi[0], dpi[1]) if all(dpi) else None)


def layout(path: Path) -> tuple[int, tuple[int, ...]]:
    """Return the number of channels and *S from the header."""
    kind = _kind(path)
    channels, *size = (call_isolated if kind == content.TIFF else _call)(describe, path)
    return channels, tuple(size)


def decode(
    path: Path, as_label: bool, resized_to: tuple[int, ...] | None = None
) -> tuple[NDArray[Any], float, float]:
    """Return the pixels [C, *S] and the resolution (x, y; 0 if unknown) in dots per inch."""
    with _open(path) as picture:
        count, pixels = _page_count(picture), picture.width * picture.height
        # A page has at most 4 bytes per pixel.
        check_declared_size(path, 4 * count * pixels, compressed=True)
        if picture.format == "PNG":
            check_png(path)
        elif picture.format in ("JPEG", "MPO"):  # MPO: with a second picture
            check_jpeg(path, pixels)
            if resized_to is not None:
                side = OVERSAMPLING * max(resized_to)
                picture.draft(None, (side, side))
        dpi = _dpi(picture)
        pages = [_page(picture, number, as_label, path) for number in range(count)]
    if len(pages) == 1:
        return pages[0], *dpi
    shapes = {page.shape for page in pages}
    if shapes != {(1, *pages[0].shape[1:])}:
        raise CrkdError(
            f"{path} has color pages or pages of different size; "
            "a volume needs gray pages of one size"
        )
    return np.stack([page[0] for page in pages])[None], *dpi


def describe(path: Path) -> tuple[int, ...]:
    """Return the number of channels, and *S as viewers show it."""
    with _open(path) as picture:
        channels = 1 if picture.mode in GRAY_MODES else 3
        height, width = picture.height, picture.width
        # Of a TIFF, Pillow says the size of the upright picture; of others that of the file.
        if picture.format != "TIFF" and "exif" in picture.info and _is_on_its_side(picture):
            height, width = width, height
        pages = _page_count(picture)
        return (channels, pages, height, width) if pages > 1 else (channels, height, width)


def write(
    path: Path, label: NDArray[Any], kind: str, dpi: tuple[float, float] | None = None
) -> None:
    """Write a label map [y, x], or [z, y, x] as the pages of a TIFF.

    Raises CrkdError if the format cannot hold the values.
    """
    from PIL import Image

    if label.dtype not in (np.uint8, np.uint16):
        if kind == ".png" or label.min() < -(2**31) or label.max() >= 2**31:
            limit = "0 to 65535" if kind == ".png" else "of 32 bits"
            raise CrkdError(f"the values {label.min()} to {label.max()} are not {limit}")
        label = label.astype(np.int32)
    planes = label if label.ndim == 3 else label[None]
    first, *others = (Image.fromarray(plane) for plane in planes)
    options: dict[str, Any] = {} if dpi is None else {"dpi": dpi}
    if kind == ".png":
        first.save(path, format="PNG", **options)
        return
    options["compression"] = "tiff_deflate"
    first.save(path, format="TIFF", save_all=True, append_images=others, **options)


def resize(
    array: NDArray[Any], size: tuple[int, ...], method: Literal["bilinear", "nearest"]
) -> NDArray[Any]:
    """Resize [C, H, W] or [H, W] to `size` (H, W).

    When shrinking, `bilinear` averages over the area that a new pixel covers.
    """
    from PIL import Image

    if array.shape[-2:] == size:
        return array
    is_color = array.dtype == np.uint8 and array.ndim == len(array) == 3
    if array.ndim == 3 and not is_color:
        return np.stack([resize(channel, size, method) for channel in array])
    # Pillow resizes the colors independently, but faster together.
    image = Image.fromarray(np.moveaxis(array, 0, -1) if is_color else array)
    height, width = size
    resized = np.asarray(image.resize((width, height), Image.Resampling[method.upper()]))
    return np.ascontiguousarray(np.moveaxis(resized, -1, 0)) if is_color else resized


def _kind(path: Path) -> content.Content | None:
    with path.open("rb") as file:
        return content.identify(file.read(content.HEAD_BYTES))


def _call(function: Any, path: Path, *args: Any) -> Any:
    return function(path, *args)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    import warnings

    from PIL import Image, UnidentifiedImageError

    import_module("PIL.TiffImagePlugin")  # else Pillow imports all plug-ins to find it
    try:
        # Not by name: Pillow would map the file into memory, and turn some TIFF files wrongly.
        with path.open("rb") as file, warnings.catch_warnings():
            # Stitched scans are legitimately large, and damaged EXIF does not matter.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=PLUGINS) as picture:
                yield picture
    except Image.DecompressionBombError as error:
        raise CrkdError(
            f"{path} is too large for a picture ({error}); cut it into smaller ones"
        ) from None
    except UnidentifiedImageError:
        raise _unidentified(path) from None


def _unidentified(path: Path) -> Exception:
    """Return why Pillow does not open a picture."""
    from PIL import TiffImagePlugin

    if _kind(path) == content.TIFF:
        try:
            TiffImagePlugin.TiffImageFile(path)
        except SyntaxError as error:
            if "pixel mode" in str(error):
                return CrkdError(
                    f"{path} is a TIFF with an unusual combination of samples, bits and colors; "
                    "save it as RGB with 8 bits, or as gray with 8 or 16 bits or 32-bit floats"
                )
        except Exception as error:
            return error
    return ValueError("its header is damaged")


def _page_count(picture: Any) -> int:
    """Return the number of pages; films and second pictures are not pages."""
    return int(getattr(picture, "n_frames", 1)) if picture.format == "TIFF" else 1


def _page(picture: Any, number: int, as_label: bool, path: Path) -> NDArray[Any]:
    """Return page `number` as [C, y, x], turned as viewers show it."""
    from PIL import ImageOps

    if number:
        picture.seek(number)
    mode = _checked_mode(picture, path)
    raw_mode = _raw_mode(picture)
    is_unsigned = False
    if picture.format == "TIFF":  # Pillow turns it when it is loaded
        check_tiff_page(path, picture.tag_v2)
        is_unsigned = picture.tag_v2.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED
    else:
        ImageOps.exif_transpose(picture, in_place=True)

    if mode in ("LA", "PA", "RGBA"):
        return _without_alpha(
            np.asarray(picture.convert("RGBA") if mode == "PA" else picture), path
        )
    if mode in COLOR_MODES and not (mode == "P" and as_label):
        return np.moveaxis(np.asarray(picture if mode == "RGB" else picture.convert("RGB")), -1, 0)
    array = np.asarray(picture)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if mode == "I" and is_unsigned:
        array = array.view(np.uint32)
    if as_label and mode == "L":
        array = _as_stored(array, raw_mode)
    return array[None]


def _as_stored(array: NDArray[Any], raw_mode: str) -> NDArray[Any]:
    """Undo what Pillow does to show gray values: white is 255, also where it was 0, 3 or 15."""
    if "I" in raw_mode:
        array = 255 - array
    return array // STRETCH.get(raw_mode[:3], 1)


def _checked_mode(picture: Any, path: Path) -> str:
    """Return the mode of a page. Raises CrkdError if Pillow would change its values."""
    mode = str(picture.mode)
    if mode not in (*GRAY_MODES, *COLOR_MODES):
        raise CrkdError(f"{path} is a {mode} picture; save it as RGB or gray")
    is_deep = ";16" in _raw_mode(picture)
    if picture.format == "TIFF":
        is_deep = max(picture.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8
        samples = picture.tag_v2.get(SAMPLES_PER_PIXEL, 1)
        if samples != len(picture.getbands()):
            raise CrkdError(
                f"{path} has {samples} channels, which are not gray or RGB; save it as either"
            )
    if is_deep and (mode == "LA" or mode in COLOR_MODES):
        raise CrkdError(
            f"{path} has colors (or transparency) of 16 bits, and 8 of them would be lost; save it "
            "as RGB with 8 bits, or as gray with 16 bits"
        )
    return mode


def _raw_mode(picture: Any) -> str:
    """Return Pillow's raw mode, which says how the values of a page are stored, or ""."""
    if not picture.tile:
        return ""
    arguments = picture.tile[0][3]
    raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw_mode if isinstance(raw_mode, str) else ""


def _without_alpha(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return the colors or gray values of [y, x, C + 1] as [C, y, x].

    Raises CrkdError if only the alpha channel varies.
    """
    *colors, alpha = np.moveaxis(array, -1, 0)
    varies = alpha.min() < alpha.max()
    if varies and all(color.min() == color.max() for color in colors):
        raise CrkdError(
            f"{path} has one color everywhere, its content is in the alpha channel (transparency); "
            "save it with the content as gray values, without alpha"
        )
    return np.stack(colors)


def _dpi(picture: Any) -> tuple[float, float]:
    """Return the resolution (x, y) of the upright picture, or zeros if it is not stated."""
    if picture.format == "TIFF" and X_RESOLUTION not in picture.tag_v2:
        return 0.0, 0.0  # Pillow says 1
    try:
        x, y = (float(value) for value in picture.info["dpi"])
    except Exception:  # missing, or damaged, which does not matter
        return 0.0, 0.0
    if not (0 < x < np.inf and 0 < y < np.inf):
        return 0.0, 0.0
    return (y, x) if _is_on_its_side(picture) else (x, y)


def _is_on_its_side(picture: Any) -> bool:
    """Whether EXIF says that the axes of the stored picture are swapped."""
    try:
        return bool(picture.getexif().get(ORIENTATION, 1) >= 5)
    except Exception:  # damaged, which does not matter
        return False
