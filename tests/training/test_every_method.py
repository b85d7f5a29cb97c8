"""Every method in the loop: bit-exact resuming, its updates, and its authors' settings."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from typer.testing import Result

from crkd_cli.config import TrainConfig
from crkd_cli.data.batch import Batch
from crkd_cli.data.splits import Split, write_split
from crkd_cli.data.store import ChannelInfo, DatasetSpec, Store, numbered_classes
from crkd_cli.data.stream import Stream
from crkd_cli.errors import UsageError
from crkd_cli.methods import METHODS
from crkd_cli.runtime.checkpoint import Checkpoint, load_checkpoint
from crkd_cli.training.batches import build_loader
from crkd_cli.training.interruptions import StoppedBySignalError
from crkd_cli.training.loop import train
from crkd_cli.training.plan import Request, plan
from crkd_cli.training.start import start
from tests.training.helpers import (
    CPU,
    Planner,
    assert_equal,
    quiet,
    set_options,
    signal_after,
    train_plan,
)


def stop_and_resume(tiny: Planner, *sets: str, steps: int = 8, stop: int = 5) -> Checkpoint:
    """Compare a run that is stopped and resumed with an uninterrupted one; return it."""
    sets = (*sets, f"train.steps={steps}", f"train.eval_every={steps}")
    train_plan(tiny(*sets, out="whole"))
    with pytest.raises(StoppedBySignalError):
        train_plan(tiny(*sets, out="parts"), signal_after(stop))
    train_plan(tiny(*sets, out="parts"))
    whole, parts = (
        load_checkpoint(tiny(*sets, out=out).folder / "last.pth") for out in ("whole", "parts")
    )
    assert whole.step == parts.step == steps
    assert_equal(parts.weights, whole.weights)
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", METHODS.names())
def test_stopped_and_resumed_is_bit_equal(tiny: Planner, name: str, optimizer: str) -> None:
    stop_and_resume(
        tiny,
        f"method={name}",
        f"train.optimizer={optimizer}",
        "train.lr=0.001",
    )


@pytest.mark.slow
def test_ad_mt_resumes_within_a_period(tiny: Planner) -> None:
    """The teachers have switched before, at the latest after 3 steps, and switch again."""
    sets = ("method=ad_mt", "methods.ad_mt.max_period=3")
    method = start(tiny(*sets, out="other")).method
    within = [step for step in range(4, 9) if method.phase_at(step - 1) == method.phase_at(step)]
    stop_and_resume(tiny, *sets, steps=12, stop=within[0])


@pytest.mark.parametrize(("name", "updates"), [("crkd", 1), ("lefed", 3)])
def test_every_batch_gets_the_updates_of_the_method_and_is_one_step(
    tiny: Planner, name: str, updates: int
) -> None:
    planned = tiny(f"method={name}", "train.steps=4")
    run = start(planned)
    calls: list[str] = []
    batches: list[Batch] = []
    losses, update, after_step = run.method.losses, run.optimizer.step, run.method.after_step

    def record_losses(batch: Batch, step: Tensor) -> dict[str, Tensor]:
        batches.append(batch)
        calls.append(f"losses {int(step)}")
        return losses(batch, step)

    def record_update(loss: Tensor) -> Tensor:
        calls.append("update")
        return update(loss)

    def record_after_step(step: Tensor) -> None:
        calls.append(f"after {int(step)}")
        after_step(step)

    run.method.losses = record_losses
    run.optimizer.step = record_update
    run.method.after_step = record_after_step
    train(run, quiet)
    expected = [[f"losses {step}", "update"] * updates + [f"after {step}"] for step in range(4)]
    assert calls == [call for step in expected for call in step]
    assert all(batch is batches[number - number % updates] for number, batch in enumerate(batches))
    assert len({id(batch) for batch in batches}) == 4
    assert load_checkpoint(planned.folder / "last.pth").step == 4


def test_mixing_partners_are_the_same_images_in_another_order(tiny: Planner) -> None:
    planned = tiny()
    config, store, split = planned.config, planned.store, planned.split
    loader = build_loader(config, store, split, METHODS["unimatch"], CPU)
    images, partners = map(read_epoch, loader.unlabeled)
    if config.data.frame.resize:  # random crops differ
        assert sorted(images) == sorted(partners)
    assert images != partners
    batch = loader.batch(loader.read(0), 0)
    assert batch.unlabeled is not None
    assert batch.partners is not None
    assert len(batch.partners.strong) == len(batch.unlabeled.strong) == 2
    assert batch.partners.weak.shape == batch.unlabeled.weak.shape
    # A method without partners gets the same unlabeled images.
    loader = build_loader(config, store, split, METHODS["crkd"], CPU)
    without = loader.batch(loader.read(0), 0)
    assert without.partners is None
    assert without.unlabeled is not None
    assert torch.equal(without.unlabeled.weak, batch.unlabeled.weak)
    assert torch.equal(without.unlabeled.strong[0], batch.unlabeled.strong[0])


def read_epoch(stream: Stream) -> list[bytes]:
    """The images of the first epoch, in their order."""
    single = Stream(stream.dataset, 1, stream.seed, stream.number)
    return [single.batch(step)[0].numpy().tobytes() for step in range(len(stream.dataset))]


@pytest.fixture
def acdc(
    tmp_path: Path, make_store: Callable[..., Store], cli: Callable[..., Result]
) -> Callable[..., Result]:
    """acdc("--method", "bcp"): train on small stacks in place of ACDC, with its configuration."""
    spec = DatasetSpec(
        name="acdc",
        source="acdc",
        classes=numbered_classes(("background", "disc")),
        channels=(ChannelInfo(modality="MR", intensity="minmax"),),
        dims=3,
    )
    make_store("acdc", dims=3, groups=4, shape=(4, 32, 32), spec=spec)
    split = split_four("acdc", tmp_path)
    small = (
        "data.frame={resize: [32, 32]}",
        "model.widths=[4, 4, 4, 4, 4]",
        "data.labeled_batch_size=2",
        "data.unlabeled_batch_size=2",
        "train.device=cpu",
    )
    paths = ("--split", split, "--data-root", tmp_path / "data", "--out", tmp_path / "run")
    arguments = ("train", "--dataset", "acdc", *paths, *set_options(small))
    return lambda *more: cli(*arguments, *more)


def split_four(dataset: str, folder: Path) -> Path:
    """Write a split of four patients, one of them labeled."""
    ids = tuple(f"p{number:02d}" for number in range(4))
    file = folder / "split.yaml"
    write_split(
        Split(dataset=dataset, name="four", train=ids[:3], labeled=ids[:1], test=ids[3:]), file
    )
    return file


def test_the_users_settings_override_the_authors(
    acdc: Callable[..., Result], tmp_path: Path
) -> None:
    result = acdc("--method", "crossmatch", "--set", "train.steps=2")
    assert result.exit_code == 0, result.stderr
    assert "using the authors' settings for acdc: train.optimizer=nesterov\n" in result.stderr
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (resolved["train"]["optimizer"], resolved["train"]["steps"]) == ("nesterov", 2)
    resumed = acdc("--method", "crossmatch", "--set", "train.steps=3")
    assert resumed.exit_code == 0
    settings = set_options(("train.optimizer=sgd", "train.steps=3"))
    assert "nesterov, now sgd" in acdc("--method", "crossmatch", *settings).stderr


@pytest.fixture
def la(tmp_path: Path, make_store: Callable[..., Store]) -> Callable[..., TrainConfig]:
    """la("bcp", "train.lr=1"): the training settings of a run on volumes in place of LA."""
    spec = DatasetSpec(
        name="la",
        source="la",
        classes=numbered_classes(("background", "atrium")),
        channels=(ChannelInfo(modality="MR", intensity="zscore"),),
        dims=3,
    )
    make_store("la", dims=3, groups=4, shape=(16, 32, 32), spec=spec)
    split = split_four("la", tmp_path)

    def settings(method: str, *sets: str) -> TrainConfig:
        request = Request(
            dataset="la",
            labeled=None,
            method=method,
            config=None,
            split=split,
            out=tmp_path / "run",
            sets=list(sets),
            data_root=tmp_path / "data",
        )
        return plan(request).config.train

    return settings


@pytest.mark.parametrize(
    ("method", "milestones"),
    [
        ("mean_teacher", [2500, 5000]),  # as in UA-MT's code: a tenth every 2,500 steps
        ("ua_mt", [2500, 5000]),
        ("lefed", [2500, 5000, 7500, 10000, 12500]),
        ("bcp", [4500, 7000, 9500, 12000, 14500]),  # after 2,000 steps on labeled images
    ],
)
def test_the_learning_rate_falls_at_the_authors_milestones(
    la: Callable[..., TrainConfig], method: str, milestones: list[int]
) -> None:
    settings = la(method)
    assert settings.lr_schedule == "step"
    assert [round(share * settings.steps) for share in settings.lr_milestones] == milestones


@pytest.mark.parametrize("schedule", ["poly", "constant"])
def test_the_authors_milestones_go_with_their_schedule(
    la: Callable[..., TrainConfig], schedule: str
) -> None:
    settings = la("lefed", f"train.lr_schedule={schedule}")
    assert (settings.lr_schedule, settings.lr_milestones, settings.steps) == (schedule, (), 15000)


def test_a_copied_store_has_the_name_of_its_folder(
    acdc: Callable[..., Result], tmp_path: Path
) -> None:
    """Evaluation looks for the store there. Everything else is as for the original dataset."""
    prepared = tmp_path / "data" / "prepared"
    (prepared / "acdc").rename(prepared / "acdc2")
    split = tmp_path / "split.yaml"
    split.write_text(split.read_text().replace("dataset: acdc", "dataset: acdc2"))
    request = Request(
        dataset="acdc2",
        labeled=None,
        method="crossmatch",
        config=None,
        split=split,
        out=tmp_path / "run",
        sets=[],
        data_root=tmp_path / "data",
    )
    planned = plan(request)
    assert (planned.config.data.name, planned.source.name) == ("acdc2", "acdc.yaml")
    assert "train.optimizer=nesterov" in planned.author_settings
    message = r"--set data\.name=acdc and --dataset acdc2 name two datasets"
    with pytest.raises(UsageError, match=message):
        plan(replace(request, sets=["data.name=acdc"]))


def test_a_configuration_file_is_complete(acdc: Callable[..., Result], tmp_path: Path) -> None:
    """The authors' settings are not added to --config."""
    assert acdc("--method", "crossmatch", "--set", "train.steps=2").exit_code == 0
    tree = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    tree["train"]["optimizer"] = "adamw"
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    result = acdc("--config", tmp_path / "own.yaml", "--out", tmp_path / "other")
    assert result.exit_code == 0, result.stderr
    assert "the authors' settings" not in result.stderr
    resolved = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())
    assert resolved["train"]["optimizer"] == "adamw"
