"""The learning curves of one run as a picture in its folder."""

from pathlib import Path

from crkd_cli.paths import atomic_write
from crkd_cli.runtime.metrics_log import RATES, mean_label_shares, read_log


def draw_curves(folder: Path) -> bool:
    """curves.png from log.jsonl: losses, validation Dice, pseudo-labels. False if matplotlib (extra `report`) is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    lines = read_log(folder)
    names = list(dict.fromkeys(name for line in lines for name in line if name != "step"))
    panels = {
        "validation Dice": [n for n in names if n.startswith("val")],
        "share of pseudo-labels": [n for n in names if n == "kept" or n.startswith("share_")],
    }
    truth = mean_label_shares(lines)
    others = {
        *RATES,
        *(f"label_{name}" for name in truth),
        *(name for members in panels.values() for name in members),
    }
    panels = {"loss": [n for n in names if n not in others], **panels}
    panels = {title: members for title, members in panels.items() if members}
    figure = Figure(figsize=(5.0 * max(len(panels), 1), 3.6), layout="constrained")
    for axes, (title, members) in zip(
        figure.subplots(1, max(len(panels), 1), squeeze=False)[0], panels.items(), strict=False
    ):
        for name in members:
            points = [(line["step"], line[name]) for line in lines if name in line]
            marker = "o" if len(points) < 20 else None
            (curve,) = axes.plot(
                *zip(*points, strict=True), label=name, linewidth=1.2, marker=marker, markersize=3
            )
            if name in truth:  # dotted: the same class's share of the labels
                axes.axhline(truth[name], color=curve.get_color(), linestyle=":", linewidth=1.0)
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
        if title != "validation Dice" and any(
            (line.get(name) or 0) > 0 for line in lines for name in members
        ):
            axes.set_yscale("log")
    with atomic_write(folder / "curves.png") as temporary:
        figure.savefig(temporary, dpi=120)
    return True
