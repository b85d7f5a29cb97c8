"""What `crkd train --help` says of the methods, from configs/about. Imports no method."""

from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import yaml
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from crkd_cli.config import Strict, parse
from crkd_cli.evaluation.literature import PublishedRow, all_published_rows
from crkd_cli.methods import METHODS
from crkd_cli.paths import packaged_folder


class Cost(Strict, frozen=True):
    """Times that of `supervised` with the same batch."""

    step: float
    memory: float


class About(Strict, frozen=True):
    """A built-in method."""

    name: str
    adds: str
    cite: str


def show_methods() -> None:
    """All installed methods on stdout, in a panel as those of the options."""
    measured, published = costs(), all_published_rows()
    known = {
        about.name: description(about, measured.get(about.name), published) for about in abouts()
    }
    table = Table.grid(padding=(0, 2))
    for name in METHODS.names():
        text = "\n".join(known[name]) if name in known else "From another package."
        table.add_row(Text(name, style="bold cyan"), Text(text))
    note = "Step, memory: on ACDC. Dice: % as published, by whom: docs/methods.md"
    Console().print(
        Panel(table, title="Methods", title_align="left", subtitle=note, border_style="dim")
    )


def abouts() -> list[About]:
    """The content of configs/about/methods.yaml, in the order of the file."""
    found: list[About] = _read("methods.yaml", list[About])
    return found


def costs() -> dict[str, Cost]:
    """The content of configs/about/costs.yaml."""
    found: dict[str, Cost] = _read("costs.yaml", dict[str, Cost])
    return found


def _read(name: str, kind: Any) -> Any:
    file = packaged_folder("configs") / "about" / name
    return parse(yaml.safe_load(file.read_text(encoding="utf-8")), kind, str(file))


def description(about: About, cost: Cost | None, published: list[PublishedRow]) -> list[str]:
    """What a method adds, by whom, what it costs, and its published Dice in percent, the range over all sources."""
    costs = cost and f"Step: {cost.step:.1f} × supervised, memory: {cost.memory:.1f} ×"
    dice = _dice(about.name, published)
    return [line for line in (about.adds, about.cite, costs, dice and f"Dice: {dice}") if line]


def _dice(name: str, published: list[PublishedRow]) -> str:
    """By data set and labeled cases: "ACDC-3 46.0–61.0, LA-8 84.2"; empty if there is none."""
    found: dict[str, list[float]] = {}
    for row in published:
        if row.method.lower().replace("-", "_") == name:
            found.setdefault(f"{row.dataset.upper()}-{row.labeled}", []).append(row.dice)
    ends = {
        setting: dict.fromkeys(_rounded(value) for value in (min(dice), max(dice)))
        for setting, dice in found.items()
    }
    return ", ".join(f"{setting} {'–'.join(values)}" for setting, values in ends.items())


def _rounded(percent: float) -> str:
    """With one digit; halves go up, as readers expect."""
    return str(Decimal(str(percent)).quantize(Decimal("0.1"), ROUND_HALF_UP))
