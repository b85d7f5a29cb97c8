"""Runs that start from pretrained weights: they need them at the start alone."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import Result

from crkd_cli.data.splits import Split, write_split
from crkd_cli.errors import UsageError
from crkd_cli.methods import METHODS
from crkd_cli.models.networks import efficientnet_lite0
from crkd_cli.runtime.build import build_method, load_method, load_predictor
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.training.plan import Request, plan
from crkd_cli.training.start import start
from tests.conftest import tiny_config
from tests.training.helpers import CPU, Planner, train_plan

NETWORK = "model.name=efficientnet_lite0"
needs_weights = pytest.mark.skipif(
    find_spec(efficientnet_lite0.PACKAGE) is None, reason="the extra `pretrained` is not installed"
)


@pytest.fixture
def color(tmp_path: Path, cli: Callable[..., Result], rng: np.random.Generator) -> Planner:
    """color("train.steps=5", out="a"): a plan for a small run on color images."""
    ids = tuple("abcdef")
    for folder in ("images", "labels"):
        (tmp_path / "dots" / folder).mkdir(parents=True)
    for case in ids:
        image = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        label = (image[..., 0] > 128).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "dots" / "images" / f"{case}.png")
        Image.fromarray(label).save(tmp_path / "dots" / "labels" / f"{case}.png")
    data_root = tmp_path / "data"
    arguments = ("--source", tmp_path / "dots", "--data-root", data_root)
    assert cli("prepare-data", "dots", *arguments).exit_code == 0
    file, split = tmp_path / "config.yaml", tmp_path / "split.yaml"
    tree = tiny_config(2)
    tree["data"]["name"] = "dots"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    write_split(
        Split(dataset="dots", name="dots", train=ids[:5], labeled=ids[:2], test=ids[5:]), split
    )

    def make(*sets: str, out: str = "run") -> object:
        request = Request(
            dataset="dots",
            labeled=None,
            method=None,
            config=file,
            split=split,
            out=tmp_path / out,
            sets=[NETWORK, *sets],
            data_root=data_root,
        )
        return plan(request)

    return make


@needs_weights
def test_every_network_starts_from_the_pretrained_weights(color: Planner) -> None:
    released = efficientnet_lite0.read_weights()["_blocks.15._project_conv.weight"]
    for name in ("crkd", "cps"):
        planned = color(f"method={name}")
        method = build_method(planned.config, planned.store.spec)
        encoders = [
            module
            for module in method.modules()
            if isinstance(module, efficientnet_lite0.EfficientNetLite0)
        ]
        assert len(encoders) == 2  # with the teacher, or the other network
        for encoder in encoders:
            assert torch.equal(encoder.deepest[-1].layers[-2].weight, released)


@needs_weights
@pytest.mark.slow
def test_only_a_fresh_run_needs_the_weights(
    color: Planner, my_method: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint predicts and resumes without them, that of a user's own method as well."""
    METHODS.add(my_method)
    methods = ("crkd", "my_method")
    for name in methods:
        train_plan(color(f"method={name}", "train.steps=2", out=name))
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "crkd_no_such_package")
    for name in methods:
        checkpoint = load_checkpoint(color(f"method={name}", "train.steps=2", out=name).folder)
        load_method(checkpoint)
        predictor = load_predictor(checkpoint, CPU)
        assert predictor(torch.rand(1, 3, 32, 32)).shape == (1, 2, 32, 32)
    parts = color("method=crkd", "train.steps=4", out="crkd")
    train_plan(parts)
    fresh = color("method=crkd", out="fresh")
    with pytest.raises(UsageError, match=r'pip install "crkd\[pretrained\]"'):
        start(fresh)
    assert not fresh.folder.exists()
    assert load_checkpoint(parts.folder / "last.pth").step == 4


def test_it_is_refused_for_other_images(tiny: Planner) -> None:
    planned = tiny(NETWORK)
    with pytest.raises(UsageError, match="is for 2D color images, which toy does not contain; use"):
        start(planned)
    assert not planned.folder.exists()
