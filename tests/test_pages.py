"""What the pages state about the program, wherever it can be looked up."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from crkd_cli.config import Config, Strict
from crkd_cli.data import splits
from crkd_cli.data.description import read_description
from crkd_cli.data.layout import IMAGES, LABELS
from crkd_cli.data.naming import MASK_WORDS
from crkd_cli.data.patients import TABLE
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.folder import Folder

CHECKOUT = Path(__file__).parents[1]
PACKAGE = CHECKOUT / "crkd_cli"


def page(name: str) -> str:
    return (CHECKOUT / name).read_text(encoding="utf-8")


def test_settings_page_lists_every_key_and_default():
    """All keys in the order of the configuration; – for a key without a default."""
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \|", page("docs/settings.md"), flags=re.MULTILINE)
    documented = [(key, None if text == "–" else [yaml.safe_load(text)]) for key, text in rows]
    assert documented == list(settings(Config))


def settings(kind: type, prefix: str = "") -> Iterable[tuple[str, list[Any] | None]]:
    """Yield keys with their defaults as YAML has them, [default]; None for a required key."""
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, Strict):
            yield from settings(field.type, f"{prefix}{field.name}.")
        elif field.required:
            yield prefix + field.name, None
        else:
            default = field.default
            if field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            yield prefix + field.name, [msgspec.json.decode(msgspec.json.encode(default))]


def test_own_data_page_names_all_folders_and_endings():
    text = page("docs/own-data.md")
    for word in (*IMAGES, *LABELS, *(f"_{word}" for word in MASK_WORDS)):
        assert re.search(rf"`{word}/?`", text), word


def test_descriptions_on_the_pages_are_valid(tmp_path):
    description, _ = code_blocks("docs/own-data.md", "yaml")
    (channels,) = code_blocks("docs/formats.md", "yaml")
    (plan,) = code_blocks("docs/plan.md", "yaml")
    file = tmp_path / "dataset.yaml"
    file.write_text(description, encoding="utf-8")
    assert list(read_description(file).classes) == ["liver", "tumor"]
    file.write_text(channels, encoding="utf-8")
    assert read_description(file).channel_names == ("T1", "FLAIR")
    file.write_text(plan, encoding="utf-8")
    assert read_description(file).plan.spacing == (3, 1, 1)


def test_split_on_the_own_data_page_is_valid(tmp_path):
    _, split = code_blocks("docs/own-data.md", "yaml")
    file = tmp_path / "polyps.yaml"
    file.write_text(split, encoding="utf-8")
    assert splits.read_split(file).unlabeled == ("ben", "carl")


def test_patients_table_on_the_own_data_page_is_read(tmp_path):
    _, table = code_blocks("docs/own-data.md", "")
    (tmp_path / TABLE).write_text(table, encoding="utf-8")
    for name in ("images/polyp-001", "images/polyp-002", "images/polyp-003", "labels/polyp-001"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").touch()
    assert [raw.group for raw in Folder().find(tmp_path)] == ["anna", "anna", "ben"]


def code_blocks(name: str, language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page(name), flags=re.MULTILINE | re.DOTALL)
    return [code for block, code in blocks if block == language]


def test_datasets_page_states_the_official_splits():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page("docs/datasets.md"), re.MULTILINE))
    for file in sorted((CHECKOUT / "splits").glob("*.yaml")):
        official = splits.official_splits(file.stem)
        *_, parts, label_counts = rows[file.stem].split(" | ")
        sizes = [len(official.train), len(official.val), len(official.test)]
        numbers = re.findall(r"[\d,]*\d", parts)
        assert [int(number.replace(",", "")) for number in numbers] == sizes
        assert label_counts.split(", ") == list(official.labeled)


@pytest.mark.parametrize("command", ["make-splits", "train"])
def test_help_names_every_dataset(command, cli):
    text = cli(command, "--help").stdout
    for name in set(SOURCES.names()) - {"folder"}:
        assert re.search(rf"\b{name}\b", text), name


def test_functions_that_contributing_names_exist():
    stops = re.findall(r"`([\w/]+\.py): ([\w.]+)`", page("CONTRIBUTING.md"))
    assert len(stops) >= 15
    for file, name in stops:
        assert name in definitions(PACKAGE / file), f"{file}: {name}"


def definitions(file: Path) -> set[str]:
    """Return the names of a module's functions, classes and methods (`Class.method`)."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        names.add(node.name)
        methods = [inner for inner in ast.iter_child_nodes(node) if hasattr(inner, "name")]
        names |= {f"{node.name}.{method.name}" for method in methods}
    return names


def test_folders_that_contributing_names_exist():
    text = page("CONTRIBUTING.md")
    rooms = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()}
    for room in rooms:
        assert re.search(rf"`(crkd_cli/)?{room}/`", text), room
