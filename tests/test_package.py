"""What ships: the version, the entry point, and the files inside the wheel."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import crkd_cli
from crkd_cli.config import build_config, read_yaml
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.splits import OfficialSplits
from crkd_cli.paths import packaged_folder
from crkd_cli.runtime.machine import OPTIONAL, REQUIRED

CHECKOUT = Path(__file__).parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
VERSION = crkd_cli.__version__


def read(name: str) -> str:
    return (CHECKOUT / name).read_text(encoding="utf-8")


def test_version_is_the_same_everywhere():
    assert PROJECT["project"]["version"] == VERSION
    assert yaml.safe_load(read("CITATION.cff"))["version"] == VERSION
    assert f"## [{VERSION}]" in read("CHANGELOG.md")
    assert f"pip install crkd-{VERSION}-py3-none-any.whl" in read("README.md")
    command = [sys.executable, "-m", "crkd_cli", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"crkd {VERSION}\n"


def test_citation_names_the_license_and_the_method():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["license"] == PROJECT["project"]["license"]
    (method,) = citation["references"]
    assert method["repository-code"] == "https://github.com/eeaesa/CRKD"
    for entry in (citation, method):  # required by the Citation File Format
        assert {"title", "authors", "type"} <= set(entry)


def test_the_metadata_agree():
    """Authors, keywords and Python versions are stated in more than one place."""
    project, citation = PROJECT["project"], yaml.safe_load(read("CITATION.cff"))
    assert project["authors"] == citation["authors"]
    assert project["keywords"] == citation["keywords"]
    prefix = "Programming Language :: Python :: 3."
    minors = [int(x.removeprefix(prefix)) for x in project["classifiers"] if x.startswith(prefix)]
    assert project["requires-python"] == f">=3.{min(minors)},<3.{max(minors) + 1}"
    assert minors == [*range(min(minors), max(minors) + 1)]
    assert f"Python 3.{min(minors)} to 3.{max(minors)}" in read("README.md")
    for url in project["urls"].values():
        assert f"({url})" in read("README.md")


def test_the_dockerfile_copies_what_the_package_is_built_from():
    text = read("Dockerfile").replace("\\\n", " ")
    sources = [word for line in re.findall("^COPY (.+)$", text, re.M) for word in line.split()[:-1]]
    assert all((CHECKOUT / source).exists() for source in sources)
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        "pyproject.toml",
        PROJECT["project"]["readme"],
        *PROJECT["project"]["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
    }
    assert needed <= set(sources)
    (extras,) = re.findall(r'"\.\[(.+)\]"', text)
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    (version,) = re.findall(r"^FROM python:3\.(\d+)-slim$", text, flags=re.MULTILINE)
    assert f"Programming Language :: Python :: 3.{version}" in PROJECT["project"]["classifiers"]


def test_the_workflow_runs_the_full_check():
    workflow = yaml.safe_load(read(".github/workflows/check.yml"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(CHECKOUT / ".ci" / "run", os.X_OK)
    for version in job["strategy"]["matrix"]["python"]:
        assert f"Programming Language :: Python :: {version}" in PROJECT["project"]["classifiers"]


def test_the_license_of_every_dependency_is_listed():
    _, _, section = read("docs/install.md").partition("## Licenses")
    rows = re.findall(r"^\| ([\w, -]+) \|", section, flags=re.MULTILINE)
    listed = {normalize(name) for row in rows for name in row.split(", ")}
    assert dependencies() <= listed


def test_wheel_contains_configurations_splits_and_the_typing_marker():
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"configs": "crkd_cli/configs", "splits": "crkd_cli/splits"}
    # The wheel takes the whole package, except for files that git ignores.
    assert wheel["packages"] == ["crkd_cli"]
    assert not {"exclude", "only-include", "include"} & set(wheel)
    marker = CHECKOUT / "crkd_cli" / "py.typed"
    assert marker.is_file()
    assert not is_ignored(marker)


def is_ignored(path: Path) -> bool:
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-C", str(CHECKOUT), "check-ignore", "--quiet", str(path)]
    return subprocess.run(command).returncode == 0


def test_every_dataset_has_a_valid_configuration():
    for name in set(SOURCES.names()) - {"folder"}:
        file = packaged_folder("configs") / f"{name}.yaml"
        config = build_config(read_yaml(file), file)
        assert config.data.name == name


def test_every_packaged_file_is_valid():
    for file in packaged_folder("configs").glob("*.yaml"):
        build_config(read_yaml(file), file)  # a dataset of the file's name would start from it
    for file in packaged_folder("splits").glob("*.yaml"):
        split = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert set(split) <= set(OfficialSplits.__struct_fields__)


def test_every_dependency_is_pinned():
    pinned = re.findall(r"^([^#\s=]+)==", read("constraints.txt"), flags=re.MULTILINE)
    groups = PROJECT["dependency-groups"].values()
    needed = dependencies().union(*map(names_of, groups))
    assert needed <= {normalize(name) for name in pinned}


def test_doctor_knows_every_dependency():
    extras = PROJECT["project"]["optional-dependencies"]
    packages = {name: extra for extra, needed in extras.items() for name in names_of(needed)}
    assert {normalize(name): extra for name, extra in OPTIONAL.items()} == packages
    assert {normalize(name) for name in REQUIRED} <= names_of(PROJECT["project"]["dependencies"])


def dependencies() -> set[str]:
    """Return the names of the packages that the project and its extras need."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    return names_of(PROJECT["project"]["dependencies"]).union(*map(names_of, extras))


def names_of(requirements: list[str]) -> set[str]:
    return {normalize(re.split(r"[<>=!~\[; ]", text)[0]) for text in requirements}


def normalize(name: str) -> str:
    return name.lower().replace("_", "-")
