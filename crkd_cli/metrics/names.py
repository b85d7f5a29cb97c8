"""How a score's column name (dice, hd95_mm, nsd_2mm) reads in a table, and which way is better."""

import math


def metric_heading(metric: str) -> str:
    """dice → Dice %, hd95_mm → HD95 mm, nsd_2mm → NSD % at 2mm."""
    name, _, unit = metric.partition("_")
    if name == "nsd":
        return f"NSD % at {unit}"
    return f"{name.capitalize()} %" if not unit else f"{name.upper()} {unit}"


def format_values(metric: str, *values: float) -> list[str]:
    """`values` as a table shows them: overlaps and shares in percent, distances in their unit; NaN as undefined."""
    scale, digits = (100, 1) if higher_is_better(metric) else (1, 2)
    # + 0.0: a little less than nothing is 0, not −0
    return [
        "undefined" if math.isnan(value) else f"{round(scale * value, digits) + 0.0:.{digits}f}"
        for value in values
    ]


def higher_is_better(metric: str) -> bool:
    """Overlaps and shares: yes; distances: no."""
    return metric.startswith(("dice", "jaccard", "nsd"))
