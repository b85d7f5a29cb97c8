"""The pages of the documentation site: complete, true to the source, and without the network."""

import ast
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import crkd_cli
from crkd_cli.evaluation.scorer import Scorer
from crkd_cli.methods import METHODS
from tests.test_readme import DOCS, anchors

CHECKOUT = Path(__file__).parents[1]
PLACE = "\0"  # stands for a value in the text of a message


def read(name: str) -> str:
    return (CHECKOUT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """The hooks of MkDocs, which need not be installed."""
    spec = importlib.util.spec_from_file_location("hooks", CHECKOUT / "docs/theme/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_navigation_has_every_page_once(hooks: ModuleType) -> None:
    in_navigation = list(pages_of(yaml.safe_load(read("mkdocs.yml"))["nav"]))
    files = [page.relative_to(CHECKOUT / "docs").as_posix() for page in DOCS]
    assert sorted(in_navigation) == sorted([*files, *hooks.TOP_PAGES])


def pages_of(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    for child in entry.values() if isinstance(entry, dict) else []:
        yield from pages_of(child)
    for child in entry if isinstance(entry, list) else []:
        yield from pages_of(child)


def test_names_of_pages_are_unique():
    """tests/test_readme.py runs the commands of a page in a folder of its name."""
    assert len({page.stem for page in DOCS}) == len(DOCS)


def test_the_site_has_the_anchors_of_github(hooks: ModuleType) -> None:
    page = CHECKOUT / "docs" / "results.md"
    headings = re.findall(r"^#+ (.+)$", read("docs/results.md"), flags=re.MULTILINE)
    assert {hooks.slugify(heading, "-") for heading in headings} == anchors(page)
    assert hooks.slugify("What's new: 96 × 96, `--set`", "-") == "whats-new-96--96---set"


@pytest.mark.parametrize(
    ("name", "text", "changed"),
    [
        ("contributing.md", "[a](docs/methods.md#x)", "[a](methods.md#x)"),
        ("install.md", "[a](../LICENSE)", "[a](files/LICENSE)"),
        ("recipes/clinic.md", "[a](../../LICENSE)", "[a](../files/LICENSE)"),
        ("results.md", "[1](../benchmarks/results/a.json)", "[1](files/benchmarks/results/a.json)"),
        ("settings.md", "[code](../crkd_cli/methods)`/NAME.py`", "code`/NAME.py`"),
        ("recipes/clinic.md", "[a](../start.md)", "[a](../start.md)"),
    ],
)
def test_links_to_files_outside_docs_lead_to_copies(
    hooks: ModuleType, name: str, text: str, changed: str
) -> None:
    assert hooks.site_text(text, name) == changed


def test_what_a_page_would_load_from_elsewhere_is_found(hooks: ModuleType) -> None:
    loaded = [
        '<script src="https://cdn.example/x.js">',
        '<link rel="stylesheet" href="//fonts.example/x.css">',
        '<link rel="preconnect" href="https://fonts.example">',
        '<img src="http://example/x.png">',
    ]
    inert = [
        '<a href="https://example">',
        '<link rel="canonical" href="https://example/page">',
        '<script src="assets/x.js">',
        '<img src="data:image/png;base64,AA">',
    ]
    found = [hooks.external_resources(tag) for tag in loaded]
    assert [len(resources) for resources in found] == [1, 1, 1, 1]
    assert hooks.external_resources("".join(inert)) == []


def test_the_api_page_has_every_public_name():
    entries = re.findall(r"^::: crkd_cli\.([\w.]+)$", read("docs/api.md"), flags=re.MULTILINE)
    documented = {entry.rpartition(".")[2] for entry in entries}
    assert set(crkd_cli.__all__) - {"__version__"} <= documented
    for entry in entries:
        module, _, name = f"crkd_cli.{entry}".rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, name), entry


def test_the_metrics_page_defines_every_column():
    rows = re.findall(r"^\| `(\w+)` \| .+ \|$", read("docs/metrics.md"), flags=re.MULTILINE)
    metrics = Scorer("folder", 2, "strict", []).metrics
    assert tuple(rows) == metrics


def test_the_comparison_names_what_it_compares():
    text = read("docs/comparison.md")
    (monai,) = re.findall(r"^monai==(.+)$", read("constraints.txt"), flags=re.MULTILINE)
    assert f"`monai` {monai}" in text
    methods = len(METHODS.names()) - 1  # supervised is the baseline
    assert f"| semi-supervised methods | {methods} " in text
    for table in text.split("<div")[1:]:
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert {row.count("|") for row in rows} == {7}


def test_every_message_of_the_troubleshooting_page_exists():
    """A heading has the words of a message in their order, with … where values are or it ends."""
    sources = [path.read_text(encoding="utf-8") for path in (CHECKOUT / "crkd_cli").rglob("*.py")]
    headings = re.findall("^### `(.+)`$", read("docs/troubleshooting.md"), flags=re.MULTILINE)
    assert len(headings) >= 25
    for heading in headings:
        parts = [part.strip() for part in heading.split("…") if part.strip()]
        assert sum(map(len, parts)) >= 10, heading
        pattern = re.compile(".*".join(map(re.escape, parts)))
        words = re.findall(r"\w+", heading)
        likely = [source for source in sources if all(word in source for word in words)]
        assert any(map(pattern.search, chain.from_iterable(map(messages, likely)))), heading


@cache
def messages(source: str) -> list[str]:
    """Return the texts in a Python file, with PLACE for each value in them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [
                part.value if isinstance(part, ast.Constant) else PLACE for part in node.values
            ]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_make_docs_installs_and_builds_strictly():
    makefile, script = read("Makefile"), read(".ci/run")
    assert "mkdocs build --strict\n" in makefile  # --quiet would hide warnings from it
    assert "\nmake docs\n" in script
    groups = tomllib.loads(read("pyproject.toml"))["dependency-groups"]
    assert "--group docs" in makefile
    assert "docs" in groups
    assert yaml.safe_load(read("mkdocs.yml"))["theme"]["font"] is False
