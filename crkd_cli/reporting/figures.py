"""Figures of a comparison as SVG for a page: texts take the page's color and font, methods its colors --m1, --m2 …"""

import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from crkd_cli.metrics.names import higher_is_better, metric_heading
from crkd_cli.metrics.summary import means
from crkd_cli.reporting.compare import Comparison, mean_over_runs
from crkd_cli.runtime.metrics_log import mean_label_shares, read_log

COLOURS = 6  # of methods, then they repeat, in broken lines
_INK = "#010203"  # matplotlib wants numbers: these stand for the page's own colors
_CURVES = {
    "val/dice": "Dice % on the validation cases",
    "total": "training loss",
    "kept": "share of pseudo-labels kept",
}


def curves(comparison: Comparison) -> list[tuple[str, str]]:
    """Title and SVG of every learning curve that the runs logged, one line per run."""
    logs = [
        (i, read_log(run.run)) for i, entry in enumerate(comparison.entries) for run in entry.runs
    ]
    drawn = []
    shares = {
        f"share_{k}": f"{c}, share of the pseudo-labels"
        for k, c in enumerate(comparison.one.classes, start=1)
    }
    for name, title in {**_CURVES, **shares}.items():
        lines = [
            (i, [(line["step"], line[name]) for line in log if name in line]) for i, log in logs
        ]
        lines = [(i, points) for i, points in lines if points]
        if lines:
            methods = ", ".join(dict.fromkeys(comparison.entries[i].name for i, _ in lines))
            truth = mean_label_shares([line for _, log in logs for line in log]).get(name)
            text = f"{title} over training steps: {methods}"
            if truth is not None:
                title = f"{title} (dotted: of the labels)"
                text = f"{text}; dotted: {100 * truth:.2g} % of the labels"
            drawn.append((title, _curve(name, lines, text, truth)))
    return drawn


def _curve(
    name: str, lines: Sequence[tuple[int, list[tuple[int, float]]]], text: str, truth: float | None
) -> str:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure, axes = _axes(2.7)
    for i, points in lines:
        marker = "o" if len(points) < 20 else None
        steps, values = zip(*points, strict=True)
        percent = [100 * value for value in values] if name == "val/dice" else values
        style = ("-", "--")[i // COLOURS % 2]
        axes.plot(steps, percent, style, color=_ink(i), linewidth=1.4, marker=marker, markersize=3)
    if truth is not None:
        axes.axhline(truth, color=_INK, linewidth=1.2, linestyle=":")
    if name == "total":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("step")
    axes.grid(alpha=0.2, color=_INK)
    return _svg(figure, f"curve-{name.replace('/', '-')}", text)


def dots(comparison: Comparison) -> list[tuple[str, str]]:
    """Title and SVG of every case's Dice and first distance by method, with means and intervals."""
    metrics = list(comparison.one.metrics)
    chosen = ["dice", *[metric for metric in metrics if not higher_is_better(metric)][:1]]
    return [(metric_heading(metric), _dots(comparison, metrics.index(metric))) for metric in chosen]


def _dots(comparison: Comparison, m: int) -> str:
    metric, count = comparison.one.metrics[m], len(comparison.entries)
    scale = 100 if higher_is_better(metric) else 1
    figure, axes = _axes(0.8 + 0.55 * count)
    jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(comparison.one.cases))
    said = []
    for i, entry in enumerate(comparison.entries):
        values = scale * means(mean_over_runs(entry.scores[..., m]))
        mean = entry.mean[m]
        axes.plot(
            values, i + jitter, "o", color=_ink(i), markersize=3.6, alpha=0.55, markeredgewidth=0
        )
        axes.plot([scale * mean.low, scale * mean.high], [i, i], color=_INK, linewidth=1.6)
        axes.plot([scale * mean.mean], [i], "D", color=_INK, markersize=5)
        said.append(f"{entry.name}: mean {scale * mean.mean:.1f}")
    axes.set_yticks(range(count), [entry.name for entry in comparison.entries])
    axes.set_ylim(count - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.2, color=_INK)
    return _svg(
        figure, f"dots-{metric}", f"{metric_heading(metric)} of every case; {'; '.join(said)}"
    )


def _axes(height: float) -> tuple[Any, Any]:
    """A figure as wide as a telephone, in the page's ink."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.subplots()
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(which="both", colors=_INK, labelsize=9)
    axes.xaxis.label.set(color=_INK, fontsize=10)
    return figure, axes


def _ink(i: int) -> str:
    return f"#0a0b0{i % COLOURS + 1}"


def _svg(figure: Any, name: str, text: str) -> str:
    """The figure as an <svg> element that screen readers read as `text`; its ids begin with `name`."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    svg = (
        f'<svg {box and box[0]} role="img" aria-label="{escape(text)}">{svg[svg.index(">") + 1 :]}'
    )
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    return re.sub(r"#0a0b0(\d)", r"var(--m\1)", svg.replace(_INK, "currentColor"))
