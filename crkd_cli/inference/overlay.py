"""A picture of a segmented case: the contours of every class on the image, with a legend."""

import io
import warnings
from collections.abc import Sequence
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crkd_cli.data.store import DatasetSpec
from crkd_cli.metrics.surface import bounding_box
from crkd_cli.paths import atomic_write
from crkd_cli.text import printable, shorten

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which color-blind readers can tell apart.
_COLORS = ("#e69f00", "#56b4e9", "#cc79a7", "#009e73", "#f0e442", "#d55e00", "#0072b2")
# Saturation and brightness of all other colors, in turn; their hues are by the golden ratio.
_TONES = ((0.7, 1.0), (1.0, 0.8), (0.3, 1.0))
_GOLDEN_RATIO = 0.618034
_FIRST_HUE = 0.4
_MAX_LEGEND = 24  # classes; of more, only those in the picture are listed
_REFERENCE = "#ffffff"
_DASHES = (0, (3, 3))  # points drawn and left out, so that the contour below remains visible
_SIDE = 5.12  # longest side of a plane, inches
_MIN_WIDTH = 1.2  # room for the name of a plane, inches
_GAP = 0.3  # between planes, inches
_LEGEND_ROW = 0.25  # height, inches
_DPI = 100
_MAX_PIXELS = 1024  # per axis of a plane, about: more would be slow and invisible


_LineStyle = str | tuple[int, tuple[int, ...]]


class _Plane(NamedTuple):
    """A 2D image, or a cross-section of a volume."""

    name: str
    image: NDArray[Any]  # [C, H, W]
    layers: NDArray[Any]  # [L, H, W], the prediction and perhaps the reference
    spacing: tuple[float, ...]
    view: tuple[slice, ...]  # the part that is shown
    upwards: bool = False  # whether rows run from bottom to top

    @property
    def size(self) -> list[float]:
        """Height and width of the view in the unit of the spacing."""
        sides = zip(self.view, self.spacing, strict=True)
        return [(part.stop - part.start) * step for part, step in sides]


def draw_overlay(
    image: NDArray[Any],
    labels: NDArray[Any],
    spec: DatasetSpec,
    spacing: Sequence[float] | None,
    title: str,
    reference: NDArray[Any] | None = None,
) -> Image.Image:
    """Draw the contours of `labels` [*S] on `image` [C, *S] and return an RGB picture.

    A volume is shown in three planes: of every axis, the slice with the most labeled voxels, or
    the one in the middle if there are none. `spacing` per axis of *S sets their aspect; None:
    equal. `reference` [*S] is drawn in dashed white lines, and the picture zooms in on both. The
    image may have another size than its labels. Of several channels, the first one is shown.
    """
    from matplotlib import rc_context

    if not spec.is_color:
        image = image[:1]
    steps = tuple(spacing or (1.0,) * labels.ndim)
    if reference is not None:  # ignored pixels are drawn as background
        reference = np.where(reference < len(spec.classes), reference, 0)
    layers = np.stack([labels] if reference is None else [labels, reference])
    if labels.ndim == 3 and spec.z_last:
        image, layers = image.transpose(0, 3, 2, 1), layers.transpose(0, 3, 2, 1)
        steps = steps[::-1]
    if labels.ndim == 3 and not spacing:
        title += " (spacing unknown, assumed equal)"
    title = shorten(printable(title))

    labeled = layers.max(0) > 0
    whole = tuple(slice(0, side) for side in labeled.shape)
    view = whole
    if reference is not None and labeled.any():
        view = _around(bounding_box(labeled), labeled.shape)
    if labels.ndim == 3:
        indices = [_fullest_slice(labeled, axis) for axis in range(3)]
        planes = [
            _cross_section(image, layers, steps, view, axis, indices[axis]) for axis in range(3)
        ]
    else:
        planes = [_Plane("", image, layers, steps, view)]

    # Names may contain dollar signs.
    style = rc_context({"text.color": "#ebebeb", "text.parse_math": False, "font.size": 11})
    # Glyphs that are not in the font are drawn as a box. The filter stays, because catch_warnings
    # would restore the filters while another thread may depend on them.
    warnings.filterwarnings("ignore", message="Glyph")
    with style:
        return _draw_page(planes, _gray_limits(image), title, _legend(labels, spec, reference))


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write an overlay as PNG. Raises CrkdError if it cannot be written."""
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG")


def _fullest_slice(labeled: NDArray[np.bool_], axis: int) -> int:
    """Return the slice across `axis` with the most labeled voxels, of equal ones the middle."""
    others = tuple(other for other in range(labeled.ndim) if other != axis)
    counts = np.count_nonzero(labeled, axis=others)
    fullest = np.flatnonzero(counts == counts.max())
    return int(fullest[(len(fullest) - 1) // 2])


def _cross_section(
    image: NDArray[Any],
    layers: NDArray[Any],
    steps: tuple[float, ...],
    view: tuple[slice, ...],
    axis: int,
    index: int,
) -> _Plane:
    """Cut `image` [C, z, y, x] and `layers` [L, z, y, x] across `axis` at `index`."""
    count = layers.shape[1 + axis]
    image_index = (2 * index + 1) * image.shape[1 + axis] // (2 * count)
    return _Plane(
        f"{'zyx'[axis]} = {index + 1} of {count}",
        image.take(image_index, 1 + axis),
        layers.take(index, 1 + axis),
        steps[:axis] + steps[axis + 1 :],
        view[:axis] + view[axis + 1 :],
        upwards=axis > 0,
    )


def _draw_page(
    planes: Sequence[_Plane], limits: tuple[float, float], title: str, legend: "list[Artist]"
) -> Image.Image:
    """Draw all planes at one scale: a single one, or z above y, with x beside y."""
    from matplotlib.figure import Figure

    # The first plane and the last span the rows and the columns of the grid.
    sizes = np.array([plane.size for plane in planes[::2]])
    sizes *= _SIDE / sizes.max()
    heights, widths = sizes[:, 0], sizes[:, 1].clip(min=_MIN_WIDTH)
    gaps = _GAP * (len(sizes) - 1)
    width, height = widths.sum() + gaps, heights.sum() + gaps
    figure = Figure(figsize=(width, height), facecolor="#181818")
    figure.subplots_adjust(
        left=0, right=1, bottom=0, top=1, wspace=_GAP / widths.mean(), hspace=_GAP / heights.mean()
    )
    grid = figure.add_gridspec(len(sizes), len(sizes), width_ratios=widths, height_ratios=heights)
    for plane, (row, column) in zip(planes, [(0, 0), (1, 0), (1, 1)], strict=False):
        _draw_plane(figure.add_subplot(grid[row, column]), plane, limits)

    # Texts lie outside the figure, which is enlarged to fit them when it is saved.
    figure.suptitle(title, x=0, y=1 + _GAP / height, ha="left", va="bottom", fontsize=12)
    if len(planes) == 1:
        _add_legend(figure, legend, corner=(0.0, 0.0), width=max(width, _SIDE))
    else:  # in the corner that the planes leave free
        corner = ((widths[0] + _GAP) / width, 1.0)
        _add_legend(figure, legend, corner, width=widths[1], height=heights[0])
    file = io.BytesIO()
    figure.savefig(file, dpi=_DPI, bbox_inches="tight", pil_kwargs={"compress_level": 0})
    return Image.open(file).convert("RGB")


def _add_legend(
    figure: "Figure",
    legend: "list[Artist]",
    corner: tuple[float, float],
    width: float,
    height: float | None = None,
) -> None:
    """Put the legend's upper left at `corner`, in no more columns than fit into `width` inches.

    With `height`, it has no more columns than it needs to fit into that many inches.
    """
    longest = max(len(str(patch.get_label())) for patch in legend)
    columns = max(1, int(width / (0.09 * longest + 0.5)))
    if height is not None:
        columns = min(columns, 1 + len(legend) // max(1, int(height / _LEGEND_ROW)))
    figure.legend(
        handles=legend, ncols=columns, loc="upper left", bbox_to_anchor=corner, frameon=False
    )


def _draw_plane(axes: "Axes", plane: _Plane, limits: tuple[float, float]) -> None:
    *_, height, width = plane.layers.shape
    down, right = plane.spacing
    extent = (0, width * right, height * down, 0)
    axes.imshow(_to_picture(plane.image, *limits), extent=extent, interpolation="catrom")

    for number, layer in enumerate(plane.layers):
        for k in np.unique(layer[layer > 0]).tolist():
            color, style = (_REFERENCE, _DASHES) if number else (class_color(k), "solid")
            _draw_contour(axes, layer == k, plane.spacing, color, style)

    rows, columns = plane.view
    axes.set_xlim(columns.start * right, columns.stop * right)
    axes.set_ylim(rows.stop * down, rows.start * down)
    if plane.upwards:
        axes.invert_yaxis()
    axes.set_axis_off()
    axes.set_anchor("W")
    axes.set_title(plane.name, loc="left", fontsize=10)


def _draw_contour(
    axes: "Axes", mask: NDArray[np.bool_], spacing: Sequence[float], color: str, style: _LineStyle
) -> None:
    box = bounding_box(mask)
    # Padded, so that contours close at the edge of the image.
    padded = np.pad(mask[box], 1)
    y, x = (
        (part.start - 0.5 + np.arange(side)) * step  # centers of the pixels
        for part, side, step in zip(box, padded.shape, spacing, strict=True)
    )
    # Above one half: inside the mask, so that the contours of neighbors do not coincide.
    axes.contour(x, y, padded, levels=[0.75], colors=color, linewidths=1.5, linestyles=[style])


def _around(box: Sequence[slice], shape: Sequence[int]) -> tuple[slice, ...]:
    """Enlarge `box` by half its side in both directions, at least by a sixteenth of the image."""
    view = []
    for part, side in zip(box, shape, strict=True):
        margin = max((part.stop - part.start) // 2, side // 16)
        view.append(slice(max(part.start - margin, 0), min(part.stop + margin, side)))
    return tuple(view)


def _gray_limits(image: NDArray[Any]) -> tuple[float, float]:
    """Return the values shown in black and white: percentiles 0.5 and 99.5 of `image` [C, *S].

    8-bit color is shown as it is.
    """
    if image.shape[0] == 3 and image.dtype == np.uint8:
        return 0.0, 255.0
    # About 128 samples per axis are enough for a percentile.
    sample = tuple(slice(None, None, max(1, side // 128)) for side in image.shape[1:])
    low, high = np.percentile(image[(slice(None), *sample)].astype(np.float32), (0.5, 99.5))
    return float(low), max(float(high), float(low) + 1e-6)


def _to_picture(image: NDArray[Any], low: float, high: float) -> Image.Image:
    """Return `image` [C, H, W] in RGB with `low` as 0 and `high` as 255, large ones reduced."""
    scaled = np.clip((image.astype(np.float32) - low) / (high - low), 0, 1) * 255
    rgb = np.broadcast_to(scaled.round().astype(np.uint8), (3, *image.shape[1:]))
    picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(rgb, 0, -1)))
    return picture.reduce(max(1, max(picture.size) // _MAX_PIXELS))


def _legend(
    labels: NDArray[Any], spec: DatasetSpec, reference: NDArray[Any] | None
) -> "list[Artist]":
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    present = np.unique(labels)
    names = list(enumerate(spec.class_names))[1:]
    hidden = 0
    if len(names) > _MAX_LEGEND:
        names = [(k, name) for k, name in names if k in present]
        hidden = max(0, len(names) - _MAX_LEGEND)
    legend: list[Artist] = []
    for k, class_name in names[:_MAX_LEGEND]:
        name = shorten(printable(class_name), 40)
        legend.append(Patch(color=class_color(k), label=name if k in present else f"{name}: none"))
    if hidden:
        legend.append(Patch(color="none", label=f"and {hidden} more"))
    if reference is not None:
        legend.append(Line2D([], [], color=_REFERENCE, linestyle=_DASHES, label="reference"))
    return legend


def class_color(k: int) -> str:
    """Return the color of class `k`, on a dark background, in which the reference is white.

    Classes with neighboring numbers differ most. Up to 25 classes can be told apart.
    """
    if k <= len(_COLORS):
        return _COLORS[k - 1]
    hue = (k * _GOLDEN_RATIO + _FIRST_HUE) % 1.0
    rgb = hsv_to_rgb(hue, *_TONES[k % len(_TONES)])
    return "#" + "".join(f"{round(255 * value):02x}" for value in rgb)
