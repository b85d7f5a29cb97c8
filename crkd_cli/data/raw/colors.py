"""Label pictures in which every class has a color.

A color is the integer 0xRRGGBB, written as "#rrggbb".
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.errors import CrkdError, pluralize

MAX_COLORS = 64  # of a label picture; a photograph has more
SHOWN = 4
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")


class ColorPictureError(CrkdError):
    """A label file is a picture with a few `colors` (0xRRGGBB)."""

    def __init__(self, message: str = "", colors: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.colors = tuple(colors)


def is_color(text: str) -> bool:
    """Return whether `text` is a color such as "#ff0000"."""
    return _COLOR.fullmatch(text) is not None


def parse_color(text: str) -> int:
    """Return the color of a text such as "#ff0000"."""
    return int(text[1:], 16)


def format_color(color: int) -> str:
    """Return a color as "#rrggbb"."""
    return f"#{color:06x}"


def to_values(array: NDArray[Any], colors: Mapping[int, int], path: Path) -> NDArray[Any]:
    """Return the label values [*S] of a picture [C, *S], where `colors` maps colors to values.

    Gray pictures count as pictures with three equal channels. Raises CrkdError if the picture has
    other colors, or more than 8 bits per channel.
    """
    if array.dtype != np.uint8 or len(array) not in (1, 3):
        raise CrkdError(
            f"{path} is not a picture with colors of 8 bits, but the classes are colors; save it "
            "as PNG with the colors of the other labels"
        )
    codes = _encode(array)
    values = np.zeros(codes.shape, np.min_scalar_type(max(colors.values())))
    unknown = np.ones(codes.shape, bool)
    for color, value in colors.items():
        here = codes == color
        values[here] = value
        unknown &= ~here
    if unknown.any():
        others = _by_frequency(codes[unknown])
        reason = (
            "add them to the classes in dataset.yaml"
            if len(others) <= MAX_COLORS
            else "save it as PNG without smooth edges"
        )
        raise CrkdError(
            f"{path} has colors that are not a class: {_list(others)} "
            f"({pluralize(int(unknown.sum()), 'pixel')}); {reason}"
        )
    return values


def color_picture_error(array: NDArray[Any], path: Path) -> CrkdError:
    """Return the error that a label is a picture [3, *S] whose colors have no meaning yet."""
    message = f"{path} is a color picture, not a label map; save it with one number per class"
    colors = _by_frequency(_encode(array)) if array.dtype == np.uint8 else []
    if not 1 <= len(colors) <= MAX_COLORS:
        return CrkdError(message)
    return ColorPictureError(f"{message}, or list its colors in dataset.yaml", colors)


def join_color_errors(errors: Sequence[CrkdError]) -> list[CrkdError]:
    """Replace the errors about color pictures by a first one that suggests the classes."""
    pictures = [error for error in errors if isinstance(error, ColorPictureError)]
    colors = sorted({color for error in pictures for color in error.colors} - {0})
    if not 1 <= len(colors) <= MAX_COLORS:
        return list(errors)
    listed = [
        f"class {number}: '{format_color(color)}'" for number, color in enumerate(colors, start=1)
    ]
    joint = CrkdError(
        f"{pluralize(len(pictures), 'color picture')} among the labels; if every color is a class, "
        f"name the classes in dataset.yaml: classes: {{{', '.join(listed)}}}"
    )
    return [joint, *(error for error in errors if not isinstance(error, ColorPictureError))]


def _encode(array: NDArray[Any]) -> NDArray[np.int32]:
    """Return the color [*S] of every pixel of [C, *S]."""
    red, green, blue = (array if len(array) == 3 else np.repeat(array, 3, axis=0)).astype(np.int32)
    codes: NDArray[np.int32] = red << 16 | green << 8 | blue
    return codes


def _by_frequency(codes: NDArray[np.int32]) -> list[int]:
    """Return the different colors, the most frequent one first."""
    colors, counts = np.unique(codes, return_counts=True)
    order: list[int] = colors[np.argsort(-counts, kind="stable")].tolist()
    return order


def _list(colors: Sequence[int]) -> str:
    shown = ", ".join(map(format_color, colors[:SHOWN]))
    return f"{shown} and {len(colors) - SHOWN} more" if len(colors) > SHOWN else shown
