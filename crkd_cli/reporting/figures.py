"""Figures of a comparison as SVG images: learning curves and the scores of every case."""

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crkd_cli.metrics.names import format_values, higher_is_better, metric_heading
from crkd_cli.metrics.summary import means
from crkd_cli.reporting.compare import Comparison, mean_over_runs
from crkd_cli.reporting.curves import use_log_scale
from crkd_cli.runtime.metrics_log import mean_label_shares, read_log
from crkd_cli.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colors of the methods, readable on the page's light cards. They repeat with dashed lines.
COLORS = ("#0072b2", "#c2500a", "#00805d", "#a8548a", "#9a6a00", "#4b5bc7")
_INK = "#1b1f24"
_CURVES = {
    "val/dice": "Dice % on the validation cases",
    "total": "training loss",
    "kept": "share of pseudo-labels kept",
}

Curve = list[tuple[int, float]]  # (step, value)


@dataclass(frozen=True)
class Figure:
    """An image of the page."""

    title: str
    text: str  # alternative text
    source: str  # data URI


def learning_curves(comparison: Comparison) -> list[Figure]:
    """Draw every curve that the runs logged, with one line per run, or per fold of a run."""
    logs = []  # (index of the method, lines of the log)
    for i, entry in enumerate(comparison.entries):
        logs += [(i, read_log(folder)) for run in entry.runs for folder in run.runs]
    label_shares = mean_label_shares([line for _, log in logs for line in log])
    titles = dict(_CURVES)
    for k, name in enumerate(comparison.common.classes, start=1):
        titles[f"share_{k}"] = f"{name}, share of the pseudo-labels"

    drawn = []
    for name, title in titles.items():
        curves = []
        for i, log in logs:
            points = [(line["step"], line[name]) for line in log if line.get(name) is not None]
            if points:
                curves.append((i, points))
        if curves:
            methods = dict.fromkeys(comparison.entries[i].name for i, _ in curves)
            text = f"{title} over training steps: {', '.join(methods)}"
            drawn.append(_curve_figure(name, title, text, curves, label_shares.get(name)))
    return drawn


def _curve_figure(
    name: str,
    title: str,
    text: str,
    curves: Sequence[tuple[int, Curve]],
    label_share: float | None,
) -> Figure:
    """Draw `curves`, (index of the method, points), and `label_share` as a dotted line."""
    axes = _new_axes(height=2.7)
    for i, points in curves:
        steps, values = zip(*points, strict=True)
        if name == "val/dice":
            values = tuple(100 * value for value in values)
        marker = "o" if len(points) < 20 else None
        style = "--" if is_dashed(i) else "-"
        axes.plot(steps, values, style, color=color(i), linewidth=1.4, marker=marker, markersize=3)
    if label_share is not None:
        axes.axhline(label_share, color=_INK, linewidth=1.2, linestyle=":")
        title = f"{title} (dotted: share of the labels)"
        text = f"{text}; dotted: {100 * label_share:.2g} % of the labels"
    if name == "total":
        use_log_scale(axes)
    axes.set_xlabel("step")
    axes.grid(alpha=0.2, color=_INK)
    return Figure(title, text, _data_uri(axes))


def case_scores(comparison: Comparison) -> list[Figure]:
    """Draw the Dice and the first distance of every case by method, with means and intervals."""
    metrics = comparison.common.metrics
    distances = [metric for metric in metrics if not higher_is_better(metric)]
    chosen = ["dice", *distances[:1]]
    return [_case_figure(comparison, metrics.index(metric)) for metric in chosen]


def _case_figure(comparison: Comparison, m: int) -> Figure:
    """Draw the scores of all cases under metric number `m`, a row of dots per method."""
    metric = comparison.common.metrics[m]
    count = len(comparison.entries)
    scale = 100 if higher_is_better(metric) else 1
    axes = _new_axes(height=0.8 + 0.55 * count)
    # Spread the dots of a row, the same case at the same height in all rows.
    offsets = np.random.default_rng(0).uniform(-0.25, 0.25, len(comparison.common.cases))
    texts = []
    for i, entry in enumerate(comparison.entries):
        values = scale * means(mean_over_runs(entry.scores[..., m]))
        mean = entry.mean[m]
        (dots,) = axes.plot(values, i + offsets, "o", color=color(i), markersize=3.6)
        dots.set(alpha=0.55, markeredgewidth=0)
        axes.plot([scale * mean.low, scale * mean.high], [i, i], color=_INK, linewidth=1.6)
        axes.plot([scale * mean.mean], [i], "D", color=_INK, markersize=5)
        texts.append(f"{entry.name}: mean {format_values(metric, mean.mean)[0]}")
    names = [printable(entry.name) for entry in comparison.entries]
    axes.set_yticks(range(count), names, parse_math=False)
    axes.set_ylim(count - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.2, color=_INK)
    heading = metric_heading(metric)
    return Figure(heading, f"{heading} of every case; {'; '.join(texts)}", _data_uri(axes))


def color(i: int) -> str:
    """Return the color of method number `i`."""
    return COLORS[i % len(COLORS)]


def is_dashed(i: int) -> bool:
    """Return whether the lines of method number `i` are dashed, because its color repeats."""
    return i // len(COLORS) % 2 == 1


def _new_axes(height: float) -> "Axes":
    """Return the axes of a new figure as wide as a phone's screen."""
    from matplotlib.figure import Figure as Canvas

    axes = Canvas(figsize=(4.2, height), layout="constrained").subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(which="both", colors=_INK, labelsize=9)
    axes.xaxis.label.set(color=_INK, fontsize=10)
    return axes


def _data_uri(axes: Any) -> str:
    """Return the figure of `axes` as the data URI of an SVG image, the same for the same data."""
    from matplotlib import rc_context

    file = io.BytesIO()
    # Text stays text, in the fonts of the reader, and identifiers are the same every time.
    warnings.filterwarnings("ignore", message="Glyph")
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "crkd", "text.parse_math": False}):
        axes.figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
