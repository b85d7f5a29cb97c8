"""What README and docs/ state of the program, where it can be looked up: settings, own data, data sets, hours."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from crkd_cli.config import Config, Strict, load_config
from crkd_cli.data import splits
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.folder import ENDINGS, IMAGES, LABELS, PATIENTS, Folder
from crkd_cli.paths import packaged_folder

CHECKOUT = Path(__file__).parents[1]


def page(name: str) -> str:
    return (CHECKOUT / name).read_text(encoding="utf-8")


def test_the_settings_are_those_of_the_configuration():
    """Every key of it, in its order, with its default; – where there is none."""
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \|", page("docs/settings.md"), flags=re.MULTILINE)
    assert [
        (key, None if shown == "–" else [yaml.safe_load(shown)]) for key, shown in rows
    ] == list(settings(Config))


def settings(kind: type, prefix: str = "") -> Iterable[tuple[str, list[Any] | None]]:
    """Keys and defaults as YAML has them; None: the key must be given."""
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, Strict):
            yield from settings(field.type, f"{prefix}{field.name}.")
        elif field.required:
            yield prefix + field.name, None
        else:
            default = (
                field.default
                if field.default_factory is msgspec.NODEFAULT
                else field.default_factory()
            )
            yield prefix + field.name, [msgspec.json.decode(msgspec.json.encode(default))]


def test_own_data_is_found_as_its_page_says(tmp_path):
    text = page("docs/own-data.md")
    for word in (*IMAGES, *LABELS, *ENDINGS):
        assert f"`{word}" in text
    file = tmp_path / "polyps.yaml"
    file.write_text(
        *re.findall(r"^```yaml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL), encoding="utf-8"
    )
    assert splits.read_split(file).unlabeled == ("ben", "carl")


def test_the_table_of_patients_on_the_page_is_read(tmp_path):
    (table,) = re.findall(
        r"^```\n(image,.*?)^```", page("docs/own-data.md"), flags=re.MULTILINE | re.DOTALL
    )
    (tmp_path / PATIENTS).write_text(table, encoding="utf-8")
    for name in ("images/polyp-001", "images/polyp-002", "images/polyp-003", "labels/polyp-001"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").touch()
    assert [raw.group for raw in Folder().find(tmp_path)] == ["anna", "anna", "ben"]


@pytest.mark.parametrize("command", ["make-splits", "train"])
def test_the_help_names_every_data_set(command, cli):
    said = cli(command, "--help").stdout
    for name in set(SOURCES.names()) - {"folder"}:
        assert re.search(rf"\b{name}\b", said), name


@pytest.mark.parametrize("name", ["ACDC", "LA"])
def test_the_hours_on_a_cpu_follow_from_the_measured_step(name):
    ((hours, steps, seconds),) = re.findall(
        rf"(\d+) for {name} \(([\d,]+) steps\s+of ([\d.]+) s\)", page("README.md")
    )
    length = load_config(packaged_folder("configs") / f"{name.lower()}.yaml").train.steps
    assert int(steps.replace(",", "")) == length
    assert int(hours) == round(length * float(seconds) / 3600)
    assert re.search(
        rf"^\| CRKD step, {name} .+ \| {seconds} s \|",
        page("docs/performance.md"),
        flags=re.MULTILINE,
    )
