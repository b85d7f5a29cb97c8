"""Keys with a new name are refused with that name, in a file and on the command line."""

from pathlib import Path

import pytest
import yaml

from crkd_cli.config import build_config, dump, read_yaml
from crkd_cli.errors import UsageError
from crkd_cli.methods import METHODS
from crkd_cli.renamed import KEYS
from tests.conftest import tiny_config


def set_key(tree: dict[str, object], key: str, value: object) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})  # type: ignore[assignment]
    tree[leaf] = value


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data.labeled", "data.labeled_batch_size"),
        ("train.schedule", "train.lr_schedule"),
        ("train.predictor", "train.recalibrate_batch_norm"),
        ("methods.crkd.ramp", "methods.crkd.rampup"),
        # Of a method that the run does not use, too.
        ("methods.bcp.teacher_decay", "methods.bcp.ema_decay"),
    ],
)
def test_an_old_key_is_refused_with_the_new_name(tmp_path: Path, old: str, new: str) -> None:
    tree = tiny_config(2)
    override = f"{old}=1"
    with pytest.raises(UsageError) as error:
        build_config(tree, tmp_path / "config.yaml", [override])
    assert str(error.value) == f"--set {override}: {old} is now called {new}"

    set_key(tree, old, 1)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(UsageError) as error:
        build_config(read_yaml(file), file)
    assert str(error.value) == f"{file}: {old} is now called {new}"


def test_every_new_name_is_a_key_and_no_old_name_is() -> None:
    tree = dump(build_config(tiny_config(2), Path("config.yaml")))
    for name in METHODS.names():
        tree["methods"][name] = dump(METHODS[name].Params())
    for old, new in KEYS.items():
        *sections, leaf = new.split(".")
        section = tree
        for name in sections:
            section = section[name]
        assert leaf in section, new
        assert old.rpartition(".")[2] not in section, old
