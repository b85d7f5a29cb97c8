"""One picture of a case for people: the contours of every class on the image, a legend, three planes for a volume."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from crkd_cli.data.store import DatasetSpec

Picture = Image.Image
Color = tuple[int, int, int]
Panel = tuple[Picture, str]  # a plane and its name
Box = list[tuple[int, int]]  # where it begins and where it has ended, for every axis
# Okabe and Ito's colors: told apart by color-blind readers too.
_COLOURS = [
    (230, 159, 0),
    (86, 180, 233),
    (204, 121, 167),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
]
_TRUTH = (255, 255, 255)
_SIDE = 512  # pixels of the longest side of a plane
_GAP, _LINE, _THICK = 12, 24, 2


def draw_overlay(
    image: NDArray[Any],
    labels: NDArray[np.uint8],
    spec: DatasetSpec,
    spacing: Sequence[float] | None,
    title: str,
    truth: NDArray[np.uint8] | None = None,
) -> Picture:
    """`labels` [*S] drawn on `image` [C, *S], any number type; `spacing` per axis of *S gives the planes' aspect.

    A volume is shown in the three planes through the middle of what was found (of the image where nothing was). `truth` [*S]
    is drawn in white under it, counts as found, and brings the picture close to both.
    """
    steps = tuple(spacing or (1.0,) * labels.ndim)
    layers = np.stack([labels] if truth is None else [labels, truth])
    if spec.z_last and labels.ndim == 3:
        image, layers, steps = (
            image.transpose(0, 3, 2, 1),
            layers.transpose(0, 3, 2, 1),
            steps[::-1],
        )
    volume = labels.ndim == 3
    box = [(0, side) for side in layers.shape[1:]] if truth is None else _around(np.any(layers, 0))
    planes = (
        [_cut(image, layers, steps, box, axis) for axis in range(3)]
        if volume
        else [(image, layers, steps, box, "")]
    )
    window = _window(image)
    # One scale for all planes: pixels per mm.
    scale = _SIDE / max((end - begin) * step for (begin, end), step in zip(box, steps, strict=True))
    panels = [
        (_plane(_bytes(plane, *window), cut, sizes, part, scale), name)
        for plane, cut, sizes, part, name in planes
    ]
    found = set(np.unique(labels).tolist())
    legend = [
        (name if k in found else f"{name}: none", _color(k))
        for k, name in enumerate(spec.classes)
        if k
    ]
    legend += [] if truth is None else [("truth", _TRUTH)]
    note = "" if spacing or not volume else " (spacing unknown, taken as equal)"
    return _page(panels, legend, title + note)


def _around(found: NDArray[np.bool_]) -> Box:
    """What was found and half as much on every side of it, at least a sixteenth of the image; all where nothing was."""
    box = []
    for axis, side in enumerate(found.shape):
        filled = np.flatnonzero(
            found.any(tuple(other for other in range(found.ndim) if other != axis))
        )
        begin, end = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, side)
        margin = max((end - begin) // 2, side // 16)
        box.append((max(begin - margin, 0), min(end + margin, side)))
    return box


def _window(image: NDArray[Any]) -> tuple[float, float]:
    """The values shown black and white: the 0.5th and 99.5th percentile; 8-bit color is shown as it is."""
    if image.shape[0] == 3 and image.dtype == np.uint8:
        return 0.0, 255.0
    thin = tuple(
        slice(None, None, max(1, side // 128)) for side in image.shape[1:]
    )  # enough for a percentile
    low, high = np.percentile(image[(slice(None), *thin)].astype(np.float32), (0.5, 99.5))
    return float(low), max(float(high), float(low) + 1e-6)


def _bytes(plane: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """[C, H, W] → [H, W, 3], `low` black and `high` white."""
    scaled = np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1) * 255
    return np.moveaxis(
        np.broadcast_to(scaled.round().astype(np.uint8), (3, *plane.shape[1:])), 0, -1
    )


def _cut(
    image: NDArray[Any], layers: NDArray[np.uint8], steps: tuple[float, ...], box: Box, axis: int
) -> tuple[NDArray[Any], NDArray[np.uint8], tuple[float, ...], Box, str]:
    """The plane across `axis` of [C, z, y, x] and [L, z, y, x] volumes, z upwards, with two spacings, its box and its name."""
    filled = np.flatnonzero(layers.any((0, *(1 + other for other in range(3) if other != axis))))
    at = int(filled[0] + filled[-1]) // 2 if len(filled) else layers.shape[1 + axis] // 2
    here = (..., at, *(slice(None),) * (2 - axis))
    plane, cut = image[here], layers[here]
    part = [*box[:axis], *box[axis + 1 :]]
    if axis > 0:
        plane, cut = plane[:, ::-1], cut[:, ::-1]
        begin, end = part[0]
        part[0] = cut.shape[1] - end, cut.shape[1] - begin
    name = f"{'zyx'[axis]} = {at + 1} of {layers.shape[1 + axis]}"
    return plane, cut, (*steps[:axis], *steps[axis + 1 :]), part, name


def _plane(
    gray: NDArray[np.uint8],
    layers: NDArray[np.uint8],
    steps: Sequence[float],
    box: Box,
    scale: float,
) -> Picture:
    """The `box` of `gray` [H, W, 3] with the contours of `layers` [L, H, W], the first on top, `scale` pixels per mm."""
    (top, bottom), (left, right) = box
    height, width = (
        max(1, round((end - begin) * step * scale))
        for (begin, end), step in zip(box, steps, strict=True)
    )

    def enlarged(whole: Picture, way: Image.Resampling) -> NDArray[np.uint8]:
        across, down = (
            whole.width / layers.shape[2],
            whole.height / layers.shape[1],
        )  # an image may be smaller than its labels
        return np.array(
            whole.resize(
                (width, height), way, (left * across, top * down, right * across, bottom * down)
            )
        )

    pixels = enlarged(Image.fromarray(np.ascontiguousarray(gray)), Image.Resampling.BICUBIC)
    labels, *truth = layers
    for layer, color in [*((layer, _TRUTH) for layer in truth), (labels, None)]:
        for k in np.unique(layer[layer > 0]):
            # Enlarged smoothly, so that contours of small images are lines and not stairs.
            mask = Image.fromarray((layer == k).astype(np.uint8) * 255)
            inside = enlarged(mask, Image.Resampling.BILINEAR) >= 128
            pixels[_contour(inside)] = color or _color(int(k))
    return Image.fromarray(pixels)


def _contour(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The outermost _THICK pixels of a mask [H, W]; along the picture's edge too."""
    core = inside
    for _ in range(_THICK):
        wide = np.pad(core, 1)
        core = core & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return inside & ~core


def _page(panels: list[Panel], legend: list[tuple[str, Color]], title: str) -> Picture:
    """Title, the panels, each over its name, and the legend. Flat panels are below the first, others in a column beside it."""
    font = ImageFont.load_default(size=16)
    flat = sum(map(_height, panels[1:])) <= _height(panels[0]) / 2  # as of a stack of few slices
    columns = [panels] if flat else [panels[:1], panels[1:]]
    entries = [(name, color, round(font.getlength(name)) + 2 * _LINE) for name, color in legend]
    sides = [max(panel.width for panel, _ in column) + _GAP for column in columns]
    tall = max(sum(map(_height, column)) for column in columns)
    width = max(
        sum(sides) + _GAP,
        round(font.getlength(title)) + 2 * _GAP,
        *(size + _GAP for _, _, size in entries),
    )
    rows = _rows(entries, width - _GAP)
    page = Image.new("RGB", (width, _LINE + _GAP + tall + _LINE * len(rows) + _GAP), (24, 24, 24))
    pen = ImageDraw.Draw(page)
    pen.text((_GAP, _GAP // 2), title, font=font, fill=(235, 235, 235))
    left = _GAP
    for column, side in zip(columns, sides, strict=True):
        top = _LINE + _GAP
        for panel, name in column:
            page.paste(panel, (left, top))
            pen.text((left, top + panel.height + 2), name, font=font, fill=(170, 170, 170))
            top += _height((panel, name))
        left += side
    top = _LINE + _GAP + tall
    for row in rows:
        left = _GAP
        for name, color, size in row:
            pen.rectangle((left, top + 3, left + 14, top + 17), fill=color)
            pen.text((left + _LINE, top), name, font=font, fill=(235, 235, 235))
            left += size
        top += _LINE
    return page


def _height(panel: Panel) -> int:
    picture, name = panel
    return picture.height + (_LINE if name else 0) + _GAP


def _rows(entries: list[tuple[str, Color, int]], width: int) -> list[list[tuple[str, Color, int]]]:
    """Legend entries (name, color, pixels) in lines of at most `width`."""
    rows: list[list[tuple[str, Color, int]]] = [[]]
    for entry in entries:
        if rows[-1] and sum(size for _, _, size in [*rows[-1], entry]) > width:
            rows.append([])
        rows[-1].append(entry)
    return rows


def _color(k: int) -> Color:
    return _COLOURS[(k - 1) % len(_COLOURS)]
