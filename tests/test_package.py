"""What ships: the version, the entry point, and configurations and splits inside the wheel."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

import crkd_cli
from crkd_cli.config import load_config
from crkd_cli.data.sources import SOURCES
from crkd_cli.paths import packaged_folder

CHECKOUT = Path(__file__).parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))


def test_one_version_everywhere():
    assert PROJECT["project"]["version"] == crkd_cli.__version__
    assert f"## {crkd_cli.__version__}" in (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-m", "crkd_cli", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"crkd {crkd_cli.__version__}\n"


def test_the_wheel_carries_configurations_and_splits():
    carried = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert carried == {"configs": "crkd_cli/configs", "splits": "crkd_cli/splits"}


def test_every_data_set_has_a_configuration_that_loads():
    for name in set(SOURCES.names()) - {"folder"}:
        config = load_config(packaged_folder("configs") / f"{name}.yaml")
        assert config.data.name == name
    for file in packaged_folder("configs").glob(
        "*.yaml"
    ):  # a data set of the file's name would start from it
        load_config(file)
    for file in packaged_folder("splits").glob("*.yaml"):
        assert set(yaml.safe_load(file.read_text(encoding="utf-8"))) <= {
            "train",
            "labeled",
            "val",
            "test",
        }


def test_every_dependency_is_pinned():
    pinned = {
        re.split(r"==", line)[0].lower().replace("_", "-")
        for line in (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    extras = [
        name for extra in PROJECT["project"]["optional-dependencies"].values() for name in extra
    ]
    for wanted in (
        *PROJECT["project"]["dependencies"],
        *extras,
        *PROJECT["dependency-groups"]["dev"],
    ):
        assert re.split(r"[<>=!~\[; ]", wanted)[0].lower().replace("_", "-") in pinned, wanted
