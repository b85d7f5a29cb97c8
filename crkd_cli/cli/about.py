"""What `crkd methods` says about the methods, read from configs/about. Imports no method."""

from collections import defaultdict
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import yaml

from crkd_cli.config import Strict, parse
from crkd_cli.evaluation.literature import PublishedRow
from crkd_cli.paths import packaged_folder


class Cost(Strict, frozen=True):
    """What a training step costs, relative to `supervised` with the same batch."""

    step: float
    memory: float


class About(Strict, frozen=True):
    """The description of a built-in method."""

    name: str
    adds: str  # to supervised training
    cite: str


def abouts() -> list[About]:
    """Read configs/about/methods.yaml, in the order of the file."""
    entries: list[About] = _read("methods.yaml", list[About])
    return entries


def costs() -> dict[str, Cost]:
    """Read configs/about/costs.yaml."""
    by_method: dict[str, Cost] = _read("costs.yaml", dict[str, Cost])
    return by_method


def _read(name: str, schema: Any) -> Any:
    file = packaged_folder("configs") / "about" / name
    return parse(yaml.safe_load(file.read_text(encoding="utf-8")), schema, str(file))


def description(about: About, cost: Cost | None, published: list[PublishedRow]) -> list[str]:
    """Describe a method in up to four lines.

    They say what it adds, who published it, what it costs, and its published Dice.
    """
    lines = [about.adds, about.cite]
    if cost:
        lines.append(f"Step: {cost.step:.1f} × supervised, memory: {cost.memory:.1f} ×")
    dice = _published_dice(about.name, published)
    if dice:
        lines.append(f"Dice: {dice}")
    return lines


def _published_dice(method: str, published: list[PublishedRow]) -> str:
    """List the ranges over all sources, such as "ACDC-3 46.0–61.0, LA-8 84.2"; may be empty."""
    by_setting: dict[str, list[float]] = defaultdict(list)
    for row in published:
        if row.method.lower().replace("-", "_") == method:
            by_setting[f"{row.dataset.upper()}-{row.labeled}"].append(row.dice)
    return ", ".join(f"{setting} {_range(dice)}" for setting, dice in by_setting.items())


def _range(values: list[float]) -> str:
    lowest, highest = _rounded(min(values)), _rounded(max(values))
    return lowest if lowest == highest else f"{lowest}–{highest}"


def _rounded(percent: float) -> str:
    """Format with one decimal, rounding halves up as readers expect."""
    return str(Decimal(str(percent)).quantize(Decimal("0.1"), ROUND_HALF_UP))
