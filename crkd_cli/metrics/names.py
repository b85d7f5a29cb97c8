"""How metrics (dice, hd95_mm, nsd_2mm) and classes read in a table, and which way is better."""

import math

UNDEFINED = "–"


def metric_heading(metric: str) -> str:
    """Return the heading of a metric: dice → Dice %, hd95_mm → HD95 mm, nsd_2mm → NSD % at 2mm."""
    name, _, unit = metric.partition("_")
    if name == "nsd":
        return f"NSD % at {unit}"
    return f"{name.upper()} {unit}" if unit else f"{name.capitalize()} %"


def class_heading(name: str, value: int, number: int) -> str:
    """Return the heading of a class: with its value in label files, unless that is its number."""
    return name if value == number else f"{name} ({value})"


def format_values(metric: str, *values: float) -> list[str]:
    """Format values for a table: overlaps in percent, distances in their unit, NaN as –."""
    scale, digits = (100, 1) if higher_is_better(metric) else (1, 2)
    texts = []
    for value in values:
        rounded = round(scale * value, digits) + 0.0  # -0.0 becomes 0.0
        texts.append(UNDEFINED if math.isnan(value) else f"{rounded:.{digits}f}")
    return texts


def higher_is_better(metric: str) -> bool:
    """Return True for overlaps and the NSD, False for distances."""
    return metric.startswith(("dice", "jaccard", "nsd"))
