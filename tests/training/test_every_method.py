"""Every method in the loop: stopped and resumed it ends the same; what its authors set holds unless the user says otherwise."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import Result

from crkd_cli.config import TrainConfig
from crkd_cli.data.batch import Batch
from crkd_cli.data.splits import Split, write_split
from crkd_cli.data.store import DatasetSpec, Store
from crkd_cli.data.stream import Stream
from crkd_cli.errors import UsageError
from crkd_cli.methods import METHODS
from crkd_cli.runtime import checkpoint as checkpoints
from crkd_cli.training.batches import build_loader
from crkd_cli.training.interruptions import StoppedBySignalError
from crkd_cli.training.loop import train
from crkd_cli.training.plan import Plan, Request, plan
from crkd_cli.training.start import start

Planner = Callable[..., Plan]


def stop_and_resume(tiny: Planner, *sets: str) -> checkpoints.Checkpoint:
    """Holds a run of 8 steps that is stopped after some to one that is not, and gives its end."""

    def stop_once(step: int, values: dict[str, float]) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    train(start(tiny(*sets, out="whole")), lambda step, values: None)
    with pytest.raises(StoppedBySignalError):
        train(start(tiny(*sets, out="parts")), stop_once)
    train(start(tiny(*sets, out="parts")), lambda step, values: None)
    whole, parts = (
        checkpoints.load_checkpoint(tiny(*sets, out=out).folder / "last.pth")
        for out in ("whole", "parts")
    )
    assert whole.step == parts.step == 8
    assert all(torch.equal(value, parts.weights[key]) for key, value in whole.weights.items())
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
        "train.steps=8",
        "train.eval_every=8",
    )


@pytest.mark.parametrize(("name", "updates"), [("crkd", 1), ("lefed", 3)])
def test_every_batch_gets_the_method_s_updates_and_is_one_step(
    tiny: Planner, name: str, updates: int
) -> None:
    planned = tiny(f"method={name}", "train.steps=4")
    run = start(planned)
    calls: list[str] = []
    batches: list[Batch] = []
    losses, update, after_step = run.method.losses, run.optimizer.step, run.method.after_step

    def watch(batch: Batch, step: int) -> dict[str, torch.Tensor]:
        batches.append(batch)
        calls.append(f"losses {step}")
        return losses(batch, step)

    run.method.losses = watch
    run.optimizer.step = lambda loss, lr: calls.append("update") or update(loss, lr)
    run.method.after_step = lambda step: calls.append(f"after {step}") or after_step(step)
    train(run, lambda step, values: None)
    expected = [[f"losses {step}", "update"] * updates + [f"after {step}"] for step in range(4)]
    assert calls == [call for step in expected for call in step]
    assert all(batch is batches[number - number % updates] for number, batch in enumerate(batches))
    assert len({id(batch) for batch in batches}) == 4
    assert checkpoints.load_checkpoint(planned.folder / "last.pth").step == 4


def test_mixing_partners_are_the_same_images_in_another_order(tiny: Planner) -> None:
    planned = tiny()
    device = torch.device("cpu")
    data = build_loader(planned.config, planned.store, planned.split, METHODS["unimatch"], device)
    first, second = data.unlabeled
    epoch = range(len(first.dataset))
    seen = [
        [image.numpy().tobytes() for step in epoch for image in _one(stream, step)]
        for stream in (first, second)
    ]
    if planned.config.data.frame.resize:  # crops differ
        assert sorted(seen[0]) == sorted(seen[1])
    assert seen[0] != seen[1]
    batch = data.batch(data.read(0), 0)
    assert batch.unlabeled is not None
    assert batch.partners is not None
    assert len(batch.partners.strong) == len(batch.unlabeled.strong) == 2
    assert batch.partners.weak.shape == batch.unlabeled.weak.shape
    # The first two parts are those that a method without partners gets.
    alone = build_loader(planned.config, planned.store, planned.split, METHODS["crkd"], device)
    other = alone.batch(alone.read(0), 0)
    assert other.partners is None
    assert other.unlabeled is not None
    assert torch.equal(other.unlabeled.weak, batch.unlabeled.weak)
    assert torch.equal(other.unlabeled.strong[0], batch.unlabeled.strong[0])


def _one(stream: Stream, step: int) -> torch.Tensor:
    return Stream(stream.dataset, 1, stream.seed, stream.number).batch(step)[0]


@pytest.fixture
def acdc(
    tmp_path: Path, make_store: Callable[..., Store], cli: Callable[..., Result]
) -> Callable[..., Result]:
    """acdc("--method", "bcp"): two steps on stacks that pass for ACDC, with its packaged configuration made small."""
    spec = DatasetSpec(
        name="acdc",
        source="acdc",
        classes=("background", "disc"),
        channels=1,
        dims=3,
        modality="mr",
        intensity="minmax",
    )
    make_store("acdc", dims=3, groups=4, shape=(4, 32, 32), spec=spec)
    ids = tuple(f"p{number:02d}" for number in range(4))
    write_split(
        Split(dataset="acdc", name="mine", train=ids[:3], labeled=ids[:1], test=ids[3:]),
        tmp_path / "split.yaml",
    )
    small = (
        "data.frame={resize: [32, 32]}",
        "model.widths=[4, 4, 4, 4, 4]",
        "data.labeled_batch_size=2",
        "data.unlabeled_batch_size=2",
    )
    sets = [word for one in (*small, "train.device=cpu") for word in ("--set", one)]
    places = (
        "--split",
        tmp_path / "split.yaml",
        "--data-root",
        tmp_path / "data",
        "--out",
        tmp_path / "run",
    )
    return lambda *more: cli("train", "--dataset", "acdc", *places, *sets, *more)


def test_published_settings_give_way_to_the_user(
    acdc: Callable[..., Result], tmp_path: Path
) -> None:
    result = acdc("--method", "crossmatch", "--set", "train.steps=2")
    assert result.exit_code == 0, result.stderr
    assert "using the authors' settings for acdc: train.optimizer=nesterov\n" in result.stderr
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (resolved["train"]["optimizer"], resolved["train"]["steps"]) == ("nesterov", 2)
    assert acdc("--method", "crossmatch", "--set", "train.steps=3").exit_code == 0  # goes on
    assert (
        "nesterov, now sgd"
        in acdc(
            "--method", "crossmatch", "--set", "train.optimizer=sgd", "--set", "train.steps=3"
        ).stderr
    )


@pytest.fixture
def la(tmp_path: Path, make_store: Callable[..., Store]) -> Callable[..., TrainConfig]:
    """la("bcp", "train.lr=1"): the training settings that a run on volumes that pass for LA would have."""
    spec = DatasetSpec(
        name="la",
        source="la",
        classes=("background", "atrium"),
        channels=1,
        dims=3,
        modality="mr",
        intensity="zscore",
    )
    make_store("la", dims=3, groups=4, shape=(16, 32, 32), spec=spec)
    ids = tuple(f"p{number:02d}" for number in range(4))
    write_split(
        Split(dataset="la", name="mine", train=ids[:3], labeled=ids[:1], test=ids[3:]),
        tmp_path / "split.yaml",
    )

    def settings(method: str, *sets: str) -> TrainConfig:
        request = Request(
            dataset="la",
            labeled=None,
            method=method,
            config=None,
            split=tmp_path / "split.yaml",
            out=tmp_path / "run",
            sets=list(sets),
            data_root=tmp_path / "data",
        )
        return plan(request).config.train

    return settings


@pytest.mark.parametrize(
    ("method", "falls"),
    [
        ("mean_teacher", [2500, 5000]),  # as in UA-MT's program: a tenth every 2,500 steps
        ("ua_mt", [2500, 5000]),
        ("lefed", [2500, 5000, 7500, 10000, 12500]),
        ("bcp", [4500, 7000, 9500, 12000, 14500]),  # after 2,000 steps on labeled images
    ],
)
def test_the_learning_rate_falls_in_the_authors_steps(
    la: Callable[..., TrainConfig], method: str, falls: list[int]
) -> None:
    settings = la(method)
    assert settings.lr_schedule == "step"
    assert [round(share * settings.steps) for share in settings.lr_milestones] == falls


@pytest.mark.parametrize("schedule", ["poly", "constant"])
def test_the_authors_milestones_go_with_their_schedule(
    la: Callable[..., TrainConfig], schedule: str
) -> None:
    settings = la("lefed", f"train.lr_schedule={schedule}")
    assert (settings.lr_schedule, settings.lr_milestones, settings.steps) == (schedule, (), 15000)


def test_a_copied_store_keeps_its_own_name(acdc: Callable[..., Result], tmp_path: Path) -> None:
    """Its folder's: what evaluates a checkpoint looks for it there. All else is as for the data set that it is a copy of."""
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
    with pytest.raises(
        UsageError, match=r"--set data\.name=acdc and --dataset acdc2 name two datasets"
    ):
        plan(replace(request, sets=["data.name=acdc"]))


def test_a_configuration_of_ones_own_is_complete(
    acdc: Callable[..., Result], tmp_path: Path
) -> None:
    """No published settings come on top of --config."""
    assert acdc("--method", "crossmatch", "--set", "train.steps=2").exit_code == 0
    tree = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    tree["train"]["optimizer"] = "adamw"
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    result = acdc("--config", tmp_path / "own.yaml", "--out", tmp_path / "other")
    assert result.exit_code == 0, result.stderr
    assert "the authors' settings" not in result.stderr
    assert (
        yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())["train"]["optimizer"]
        == "adamw"
    )
