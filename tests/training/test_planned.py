"""Runs on a user's own data follow the plan of the prepared dataset."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import yaml

from crkd_cli.config import Frame
from crkd_cli.data.plan import Plan
from crkd_cli.data.splits import Split, write_split
from crkd_cli.data.store import ChannelInfo, DatasetSpec, Store, numbered_classes
from crkd_cli.training.plan import Request, plan
from crkd_cli.training.planned import describe, warn_of_enlarging

PLANS = {
    "2D images": Plan(network="2D", resize=(16, 16), batch=3),
    "slices": Plan(network="2D", patch=(16, 24), batch=5),
    "volumes": Plan(network="3D", patch=(8, 16, 24), batch=2),
}


@pytest.fixture
def planned(
    tmp_path: Path, make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Store]:
    """planned("slices"): a store with this plan, and split.yaml, in the working directory."""

    def make(name: str) -> Store:
        dims = 2 if name == "2D images" else 3
        spec = DatasetSpec(
            name="toy",
            source="folder",
            classes=numbered_classes(("background", "disc")),
            channels=(ChannelInfo(modality="gray", intensity="minmax"),),
            dims=2 if dims == 2 else 3,
            plan=msgspec.structs.replace(PLANS[name], orientation="native", spacing="native"),
        )
        monkeypatch.chdir(tmp_path)
        split = Split(
            dataset="toy", name="toy", train=("p00", "p01"), labeled=("p00",), val=(), test=("p02",)
        )
        write_split(split, tmp_path / "split.yaml")
        return make_store(groups=3, dims=dims, shape=(32,) * dims, spec=spec)

    return make


def request(config: Path | None = None, sets: tuple[str, ...] = ()) -> Request:
    return Request(
        dataset="toy",
        labeled=None,
        method=None,
        config=config,
        split=Path("split.yaml"),
        out=None,
        sets=list(sets),
        data_root=Path("data"),
    )


@pytest.mark.parametrize("name", PLANS)
def test_images_and_batches_are_as_planned(planned, tmp_path, name):
    planned(name)
    expected = PLANS[name]
    config = plan(request()).config
    assert config.data.frame == Frame(resize=expected.resize, patch=expected.patch)
    batches = config.data.labeled_batch_size, config.data.unlabeled_batch_size
    assert batches == (expected.batch, expected.batch)
    assert config.data.foreground == (0 if name == "2D images" else 0.33)
    assert config.model.name == ("vnet" if name == "volumes" else "unet")
    assert plan(request(sets=("data.labeled_batch_size=1",))).config.data.labeled_batch_size == 1

    file = tmp_path / "mine.yaml"
    tree = msgspec.to_builtins(config)
    tree["data"]["labeled_batch_size"] = 7
    file.write_text(yaml.safe_dump(tree))
    own = plan(request(file))
    assert own.config.data.labeled_batch_size == 7
    assert own.data_plan is None


def test_a_run_says_whether_it_follows_the_plan(planned):
    root = planned("2D images").root
    data = plan(request()).config.data
    line = describe(data, PLANS["2D images"], root)
    assert line == f"following the plan of {root}: resize 16 × 16, batch 3 + 3"
    assert warn_of_enlarging(data, PLANS["2D images"], root) is None

    data = plan(request(sets=("data.frame.resize=[16, 32]",))).config.data
    line = describe(data, PLANS["2D images"], root)
    assert line.startswith("not following the plan")
    assert line.endswith("(resize 16 × 16, batch 3 + 3): resize 16 × 32, batch 3 + 3")
    warning = warn_of_enlarging(data, PLANS["2D images"], root)
    assert warning is not None
    assert "add plan: {resize: [16, 32]} to dataset.yaml" in warning
