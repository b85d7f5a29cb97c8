"""What `crkd methods` says about the methods: complete, short, and as in docs/methods.md."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from crkd_cli.cli.about import About, Cost, abouts, costs, description
from crkd_cli.evaluation.literature import all_published_rows
from crkd_cli.methods import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
SECTIONS = {text.partition("\n")[0]: " ".join(text.split()) for text in PAGE.split("\n## ")[1:]}


def published(name: str) -> set[tuple[str, int, float]]:
    """Return (dataset, labeled cases, Dice) of a method, from configs/about/published.yaml."""
    title = name.upper().replace("_", "-")
    return {
        (row.dataset, row.labeled, row.dice)
        for row in all_published_rows()
        if row.method.upper() == title
    }


def test_every_built_in_method_has_an_entry() -> None:
    assert sorted(about.name for about in abouts()) == METHODS.builtin_names() == sorted(costs())


def test_each_has_up_to_five_short_lines(
    cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    panel = cli("methods").stdout
    entries: dict[str, list[str]] = {}
    name = ""
    for line in panel.splitlines():
        if line.startswith("│"):
            name = line[2:16].strip() or name
            entries.setdefault(name, []).append(line[16:-2].strip())
    assert list(entries) == METHODS.names()
    for about in abouts():
        lines = entries[about.name]
        assert len(lines) <= 5, lines
        text = " ".join(lines)
        assert about.adds in text
        assert about.cite in text
    assert "Dice: ACDC-3 60.3, ACDC-7 83.3" in " ".join(entries["cps"])
    # The whole note, not truncated.
    assert "Step, memory: on ACDC. Dice: published, in %. Sources: docs/methods.md" in panel


def test_a_description_by_hand() -> None:
    about = About(name="ua_mt", adds="Much.", cite="Somebody, 2019")
    rows = all_published_rows()
    assert description(about, Cost(step=2.14, memory=1.4), rows) == [
        "Much.",
        "Somebody, 2019",
        "Step: 2.1 × supervised, memory: 1.4 ×",
        "Dice: ACDC-3 46.0–61.0, ACDC-7 81.5–81.7, LA-8 84.3–85.8, LA-16 88.9",
    ]
    unknown = About(name="none", adds="Little.", cite="Nobody")
    assert description(unknown, None, rows) == ["Little.", "Nobody"]


def test_the_page_names_the_repository_of_every_published_row() -> None:
    for row in all_published_rows():
        name = row.source.split()[0]
        assert re.search(rf"\b\w+/{name}\b", PAGE), row.source


@pytest.mark.parametrize("about", abouts(), ids=lambda about: about.name)
def test_the_page_agrees(about: About) -> None:
    """It names the cited authors, and its figures are those of configs/about/published.yaml."""
    section = SECTIONS[about.name]
    cited = set(re.findall(r"\w+", about.cite.replace("et al.", "")))
    assert cited <= set(re.findall(r"\w+", section))
    matches = re.findall(r"\b(ACDC|LA)-(\d+) (\d+\.\d+)", section)
    figures = {(dataset.lower(), int(labeled), float(dice)) for dataset, labeled, dice in matches}
    assert figures <= published(about.name)
    assert ("Published: none" in section) == (not published(about.name))
