"""`model.name: auto`: which network a run gets, what it says, and that a resumed run keeps it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import Result

from crkd_cli.data.splits import Split, write_split
from crkd_cli.data.store import (
    RECIPE,
    ChannelInfo,
    DatasetSpec,
    Index,
    Store,
    numbered_classes,
    write_index,
)
from crkd_cli.models.networks import efficientnet_lite0
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.training.plan import Plan, Request, plan
from tests.conftest import tiny_config
from tests.training.helpers import train_arguments

EFFICIENTNET = "efficientnet_lite0"
needs_extra = pytest.mark.skipif(
    not efficientnet_lite0.has_weights(), reason="the extra `pretrained` is not installed"
)
AUTO = {
    **tiny_config(2),
    "model": {"name": "auto", "widths": [4, 4, 8, 8, 8]},
    "train": {"steps": 2, "precision": "fp32", "device": "cpu"},
    "method": "supervised",
}


@pytest.fixture
def images(tmp_path: Path, make_store: Callable[..., Store]) -> Callable[..., None]:
    """images("RGB"): a store of three images, split.yaml, and config.yaml with a network `auto`."""

    def make(modality: str) -> None:
        intensity = "uint8" if modality == "RGB" else "minmax"
        spec = DatasetSpec(
            name="toy",
            source="folder",
            classes=numbered_classes(("background", "disc")),
            channels=(ChannelInfo(modality=modality, intensity=intensity),),
            dims=2,
        )
        store = make_store(groups=3, dims=2, spec=spec)
        if modality == "RGB":
            for file in (store.root / "images").glob("*.npy"):
                np.save(file, (255 * np.load(file).repeat(3, axis=0)).astype(np.uint8))
            write_index(store.root, Index(recipe=RECIPE, spec=spec, cases=store.index.cases))
        split = Split(
            dataset="toy", name="toy", train=("p00", "p01"), labeled=("p00",), val=(), test=("p02",)
        )
        write_split(split, tmp_path / "split.yaml")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(AUTO), encoding="utf-8")

    return make


def make_plan(root: Path, *sets: str) -> Plan:
    request = Request(
        dataset="toy",
        labeled=None,
        method=None,
        config=root / "config.yaml",
        split=root / "split.yaml",
        out=root / "run",
        sets=list(sets),
        data_root=root / "data",
    )
    return plan(request)


def remove_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "a_package_that_is_not_installed")


@needs_extra
def test_rgb_images_get_the_pretrained_network(images, tmp_path):
    images("RGB")
    planned = make_plan(tmp_path)
    assert planned.config.model.name == EFFICIENTNET
    assert "--set model.name=unet" in planned.network_reason


@pytest.mark.parametrize(
    ("modality", "reason"),
    [("gray", "these images"), ("RGB", 'pip install "crkd[pretrained]"')],
)
def test_otherwise_it_is_the_unet(images, tmp_path, monkeypatch, modality, reason):
    images(modality)
    if "pip" in reason:
        remove_extra(monkeypatch)
    planned = make_plan(tmp_path)
    assert planned.config.model.name == "unet"
    assert reason in planned.network_reason


def test_a_network_that_is_named_is_used(images, tmp_path, monkeypatch):
    images("RGB")
    remove_extra(monkeypatch)
    for name in ("unet", EFFICIENTNET):
        planned = make_plan(tmp_path, f"model.name={name}")
        assert planned.config.model.name == name
        assert planned.network_reason is None


@needs_extra
@pytest.mark.slow
@pytest.mark.parametrize("began_with", [EFFICIENTNET, "unet"])
def test_a_resumed_run_keeps_its_network_whatever_is_installed(
    images, tmp_path, monkeypatch, cli: Callable[..., Result], began_with
):
    images("RGB")
    with monkeypatch.context() as first:
        if began_with == "unet":
            remove_extra(first)
        result = cli(*train_arguments(tmp_path))
    assert result.exit_code == 0, result.output
    assert f"network: {began_with} (" in result.stderr
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert saved["model"]["name"] == began_with
    assert load_checkpoint(tmp_path / "run" / "last.pth").config.model.name == began_with

    if began_with == EFFICIENTNET:
        remove_extra(monkeypatch)
    result = cli(*train_arguments(tmp_path, "train.steps=3"))
    assert result.exit_code == 0, result.output
    assert f"network: {began_with} (as this run began)" in result.stderr
    resumed = load_checkpoint(tmp_path / "run" / "last.pth")
    assert (resumed.step, resumed.config.model.name) == (3, began_with)
