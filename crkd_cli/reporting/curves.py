"""The learning curves of one run as a picture in its folder."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crkd_cli.paths import atomic_write
from crkd_cli.runtime.metrics_log import RATES, mean_label_shares, read_log
from crkd_cli.text import printable, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VALIDATION = "validation Dice"
PSEUDO_LABELS = "share of pseudo-labels"
FEW_POINTS = 20  # a curve with fewer points shows them
LEGEND_ROWS = 16  # more do not fit beside a panel's curves

Lines = Sequence[dict[str, Any]]


def draw_curves(folder: Path) -> None:
    """Draw curves.png from log.jsonl: losses, validation Dice and pseudo-labels."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines = read_log(folder)
    panels = _choose_panels(lines)
    count = max(len(panels), 1)
    figure = Figure(figsize=(5.0 * count, 3.6), layout="constrained")
    all_axes = figure.subplots(1, count, squeeze=False)[0]
    # Names of classes may contain dollar signs, and characters that are drawn as a box.
    warnings.filterwarnings("ignore", message="Glyph")
    with rc_context({"text.parse_math": False}):
        for axes, (title, names) in zip(all_axes, panels.items(), strict=False):
            _draw_panel(axes, title, names, lines)
        _save(figure, folder / "curves.png")


def use_log_scale(axes: "Axes") -> None:
    """Make the y axis logarithmic, with plain numbers: formulas are not typeset here."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _choose_panels(lines: Lines) -> dict[str, list[str]]:
    """Return the names of the values in every panel that has any, by its title."""
    defined = [name for line in lines for name, value in line.items() if value is not None]
    names = [name for name in dict.fromkeys(defined) if name != "step"]
    validation = [name for name in names if name.startswith("val")]
    pseudo_labels = [name for name in names if name == "kept" or name.startswith("share_")]
    label_shares = [f"label_{name}" for name in mean_label_shares(lines)]
    elsewhere = {*RATES, *label_shares, *validation, *pseudo_labels}
    losses = [name for name in names if name not in elsewhere]
    panels = {"loss": losses, VALIDATION: validation, PSEUDO_LABELS: pseudo_labels}
    return {title: members for title, members in panels.items() if members}


def _draw_panel(axes: "Axes", title: str, names: Sequence[str], lines: Lines) -> None:
    label_shares = mean_label_shares(lines)
    for name in names:
        color = _draw_curve(axes, name, lines)
        if name in label_shares:  # dotted: the share of the same class in the labels
            axes.axhline(label_shares[name], color=color, linestyle=":", linewidth=1.0)
    axes.set(xlabel="step", title=title)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[:LEGEND_ROWS], labels[:LEGEND_ROWS], fontsize=8, frameon=False)
    has_positive = any((line.get(name) or 0) > 0 for line in lines for name in names)
    if title != VALIDATION and has_positive:
        use_log_scale(axes)


def _draw_curve(axes: "Axes", name: str, lines: Lines) -> Any:
    """Draw the values called `name` over the steps; return the curve's color."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    steps, values = zip(*points, strict=True)
    marker = "o" if len(points) < FEW_POINTS else None
    label = shorten(printable(name), 40)
    (curve,) = axes.plot(steps, values, label=label, linewidth=1.2, marker=marker, markersize=3)
    return curve.get_color()


def _save(figure: "Figure", file: Path) -> None:
    with atomic_write(file) as temporary:
        figure.savefig(temporary, dpi=120)
