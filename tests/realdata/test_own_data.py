"""Public datasets read as a user's own: the same cases and labels, by folders or a description."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from crkd_cli.data.store import Store

pytestmark = pytest.mark.realdata


@pytest.fixture
def prepare(cli: Callable[..., Result], tmp_path: Path) -> Callable[..., Result]:
    """prepare("kvasir", folder) runs prepare-data in a data root of the test."""
    return lambda *args: cli("prepare-data", *args, "--data-root", tmp_path / "data")


def labels(root: Path, name: str) -> dict[str, str | None]:
    """Return the digests of the class numbers at their native size by case."""
    return {case.id: case.label_sha256 for case in Store(root / "data/prepared" / name).index.cases}


def test_folders_of_images_and_masks(prepare, shared_data, tmp_path):
    for name in ("kvasir", "polyps"):
        result = prepare(name, "--source", shared_data / "kvasir")
        assert result.exit_code == 0, result.stderr
    assert labels(tmp_path, "polyps") == labels(tmp_path, "kvasir")


def test_the_suggested_lines_describe_other_folders(prepare, shared_data, tmp_path):
    raw = tmp_path / "lesions"
    raw.mkdir()
    for folder in (shared_data / "isic2018").iterdir():
        (raw / folder.name).symlink_to(folder)
    result = prepare("lesions", "--source", raw)
    assert result.exit_code == 1
    lines = re.findall(r'(?:images|labels): "[^"]+"', result.stderr)
    (raw / "dataset.yaml").write_text("\n".join(lines), encoding="utf-8")
    for name, source in (("lesions", raw), ("isic2018", shared_data / "isic2018")):
        result = prepare(name, "--source", source)
        assert result.exit_code == 0, result.stderr
    assert labels(tmp_path, "lesions") == labels(tmp_path, "isic2018")


@pytest.mark.parametrize(
    ("name", "folder", "used"),
    [
        ("acdc", "acdc_nifti", {"image": 6, "label": 6, "Info.cfg file": 3}),
        ("acdc", "acdc", {"labeled image": 14}),
        ("la", "la", {"labeled image": 6}),
        ("isic2018", "isic2018", {"image": 11, "label": 11}),
    ],
)
def test_the_inventory_names_every_file(prepare, shared_data, name, folder, used):
    result = prepare(name, "--source", shared_data / folder, "--check", "--json")
    assert result.exit_code == 0, result.stderr
    files = json.loads(result.stdout)["files"]
    counts: dict[str, int] = {}
    for file in files:
        if file["status"] == "used":
            counts[file["what"]] = counts.get(file["what"], 0) + 1
    assert counts == used
    assert len(files) == sum(path.is_file() for path in (shared_data / folder).rglob("*"))
