"""The loop: equal to one written plainly, exact after a stop."""

import json
import os
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crkd_cli.data.splits import split_file, write_split
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.methods import METHODS
from crkd_cli.runtime.build import build_method
from crkd_cli.runtime.checkpoint import load_checkpoint, save_checkpoint
from crkd_cli.runtime.metrics_log import MetricsLog
from crkd_cli.schedules import multistep, poly
from crkd_cli.training.batches import build_loader, step_seed
from crkd_cli.training.interruptions import StoppedBySignalError
from crkd_cli.training.loop import train
from crkd_cli.training.plan import Plan, Request, plan
from crkd_cli.training.start import start

Planner = Callable[..., Plan]


def quiet(step: int, values: dict[str, float]) -> None:
    """A report for nobody."""


def weights(folder: Path, name: str = "last.pth") -> dict[str, Tensor]:
    return load_checkpoint(folder / name).weights


def assert_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert not different, f"{len(different)} of {len(one)} tensors differ, first {different[:3]}"


@pytest.mark.parametrize(("method", "updates"), [("crkd", 1), ("supervised", 1), ("supervised", 3)])
def test_parity_with_a_plain_loop(
    tiny: Planner, monkeypatch: pytest.MonkeyPatch, method: str, updates: int
) -> None:
    """20 steps of the engine against 20 steps written out: forward, backward, torch's own SGD, nothing else. Bit for bit.

    A step is a batch, on which a method may ask for several updates.
    """
    monkeypatch.setattr(METHODS[method], "updates", updates)
    planned = tiny(f"method={method}")
    train(start(planned), quiet)
    config, device = planned.config, torch.device("cpu")
    plain = build_method(config, planned.store.spec)
    first = {name: value.clone() for name, value in plain.state_dict().items()}
    data = build_loader(config, planned.store, planned.split, type(plain), device)
    parameters = [p for p in plain.parameters() if p.requires_grad]
    sgd = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    plain.train()
    for step in range(20):
        batch = data.batch(data.read(step), step)
        torch.manual_seed(step_seed(config.train.seed, step))
        sgd.param_groups[0]["lr"] = 0.01 * (1 - step / 20) ** 0.9
        for _ in range(updates):
            sgd.zero_grad()
            plain.losses(batch, step)["total"].backward()
            sgd.step()
        plain.after_step(step)
    assert load_checkpoint(planned.folder / "last.pth").step == 20
    trained = weights(planned.folder)
    assert_equal(plain.state_dict(), trained)
    moved = [name for name, value in first.items() if not torch.equal(value, trained[name])]
    assert len(moved) > len(first) / 2


def test_poly_by_hand() -> None:
    assert [poly(0, 100), poly(100, 100), poly(200, 100)] == [1.0, 0.0, 0.0]
    assert poly(50, 100, power=2.0) == 0.25


def test_multistep_equals_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 50, 75])
    for step in range(100):
        assert multistep(step, 100, (0.2, 0.5, 0.75)) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (
            ("train.lr_horizon=1.25", "train.lr_power=1"),
            [0.5 * (1 - step / 25) for step in range(20)],
        ),
        (("train.lr_schedule=constant",), [0.5] * 20),
        (
            ("train.lr_schedule=step", "train.lr_milestones=[0.25, 0.5]"),
            [0.5] * 5 + [0.05] * 5 + [0.005] * 10,
        ),
    ],
)
def test_the_learning_rate_follows_its_schedule(
    tiny: Planner, sets: tuple[str, ...], expected: list[float]
) -> None:
    run = start(tiny("train.lr=0.5", *sets))
    rates: list[float] = []
    inner = run.optimizer.step
    run.optimizer.step = lambda loss, lr: rates.append(lr) or inner(loss, lr)  # type: ignore[method-assign, func-returns-value]
    train(replace(run, val=[]), quiet)
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("dims", "number"),
    [(2, signal.SIGTERM), (3, signal.SIGTERM), (2, signal.SIGINT), (2, signal.SIGUSR1)],
    indirect=["dims"],
)
def test_stopped_by_a_signal_and_resumed_is_bit_equal(
    tiny: Planner, number: signal.Signals
) -> None:
    whole = tiny(out="whole")
    train(start(whole), quiet)

    def stop_once(step: int, values: dict[str, float]) -> None:
        if step == 5:
            os.kill(os.getpid(), number)

    with pytest.raises(StoppedBySignalError) as stopped:
        train(start(tiny(out="parts")), stop_once)
    assert stopped.value.exit_code == 128 + number
    again = tiny(out="parts")
    assert again.resumed is not None
    assert 5 <= again.resumed.step < 20
    train(start(again), quiet)
    assert_equal(weights(whole.folder), weights(again.folder))
    assert_equal(weights(whole.folder, "best.pth"), weights(again.folder, "best.pth"))
    assert tiny(out="parts").finished
    lines = [json.loads(line) for line in (again.folder / "log.jsonl").read_text().splitlines()]
    for name in (
        "total",
        "val/dice",
    ):  # a score is written when it is ready, after lines of later steps perhaps
        steps = [line["step"] for line in lines if name in line]
        assert steps == sorted(set(steps))
        assert steps[-1] == 20


def test_extending_a_finished_run(tiny: Planner) -> None:
    train(start(tiny("train.steps=5")), quiet)
    assert tiny("train.steps=5").finished
    longer = tiny("train.steps=8")
    assert not longer.finished
    run = start(longer)
    assert run.method.task.steps == 8  # what ramps go by, stopped again and resumed or not
    train(run, quiet)
    assert load_checkpoint(longer.folder / "last.pth").step == 8
    with pytest.raises(UsageError, match=r"8 steps done, now train\.steps = 5"):
        tiny("train.steps=5")


@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.parametrize(("labeled", "name"), [("02", "toy-crkd-2"), ("5.0%", "toy-crkd-5pct")])
def test_one_folder_however_the_label_count_is_typed(
    tiny: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labeled: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    known = tiny()
    write_split(known.split, split_file(known.store, labeled))
    request = Request(
        dataset="toy",
        labeled=labeled,
        method=None,
        config=known.source,
        split=None,
        out=None,
        sets=[],
        data_root=Path("data"),
    )
    assert plan(request).folder == Path("runs") / name


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_run_folder_is_for_one_process(tiny: Planner) -> None:
    first = start(tiny("train.steps=1", "method=supervised"))
    with pytest.raises(UsageError, match="another process trains in"):
        start(tiny("train.steps=1", "method=supervised"))
    start(tiny("train.steps=1", "method=supervised", out="other"))
    train(first, quiet)
    start(tiny("train.steps=2", "method=supervised"))


def test_other_settings_in_the_same_folder_are_refused(tiny: Planner) -> None:
    planned = tiny("train.steps=2")
    train(start(planned), quiet)
    with pytest.raises(UsageError, match=r"train\.lr = 0\.01, now 0\.5"):
        tiny("train.steps=2", "train.lr=0.5")
    (planned.folder / "best.pth").replace(planned.folder / "last.pth")
    with pytest.raises(CrkdError, match=r"last\.pth lacks the optimizer"):
        tiny("train.steps=3")
    index = planned.store.root / "index.json"
    index.write_text(index.read_text().replace('"disc"', '"ball"'))
    with pytest.raises(UsageError, match=r"prepared\.classes = \(.*'disc'\), now \(.*'ball'\)"):
        tiny("train.steps=2")


def test_a_full_disk_under_the_log_is_one_line(tmp_path: Path) -> None:
    journal = MetricsLog(tmp_path, 0, tensorboard=False)
    journal.file.unlink()
    journal.file.symlink_to("/dev/full")
    with pytest.raises(CrkdError, match=rf"cannot write {journal.file}: No space left"):
        journal.write(1, {"total": 1.0})


def test_unlabeled_labels_are_never_opened(tiny: Planner) -> None:
    """Deleting the labels of the unlabeled cases changes nothing: the same weights."""
    with_labels = tiny("train.steps=8", out="with")
    train(start(with_labels), quiet)
    for group in with_labels.split.unlabeled:
        (with_labels.store.root / "labels" / f"{group}.npy").unlink()
    without = tiny("train.steps=8", out="without")
    train(start(without), quiet)
    assert_equal(weights(with_labels.folder), weights(without.folder))


@pytest.mark.parametrize("side", [16, 32])
def test_no_bf16_on_a_cpu_where_its_gradient_is_wrong(tiny: Planner, dims: int, side: int) -> None:
    """A first axis of 2, met by 3D frames of 16 and 32: oneDNN's weight gradient is not even the same twice."""
    if dims == 2:
        assert start(tiny("train.precision=bf16")).precision == torch.bfloat16
        return
    frame = f"data.frame={{patch: [{side}, 32, 16]}}"
    assert start(tiny("train.precision=auto", frame, out="auto")).precision == torch.float32
    with pytest.raises(UsageError, match=f"first side is {side}"):
        start(tiny("train.precision=bf16", frame, out="bf16"))
    assert (
        start(
            tiny("train.precision=bf16", "data.frame={patch: [48, 32, 16]}", out="large")
        ).precision
        == torch.bfloat16
    )


def test_run_folder(tiny: Planner) -> None:
    planned = tiny()
    reports: list[dict[str, float]] = []
    metrics = train(start(planned), lambda step, values: reports.append(values) if values else None)
    lines = [json.loads(line) for line in (planned.folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "total" in line] == [5, 10, 15, 20]
    assert [line["step"] for line in lines if "val/dice" in line] == [10, 20]
    best = max((line for line in lines if "val/dice" in line), key=lambda line: line["val/dice"])
    saved = load_checkpoint(planned.folder / "best.pth")
    assert saved.step == best["step"]
    assert metrics["best"]["step"] == saved.step
    assert saved.training is None
    assert {
        "labeled",
        "pseudo",
        "pixel",
        "feature",
        "semantic",
        "entropy",
        "kept",
        "share_1",
    } <= reports[-1].keys()
    assert (planned.folder / "config.yaml").is_file()
    assert not list(planned.folder.glob(".tmp-*"))


def test_training_learns(tiny: Planner) -> None:
    planned = tiny("method=supervised", "train.steps=80", "train.eval_every=80", "train.lr=0.05")
    metrics: dict[str, Any] = train(start(planned), quiet)
    assert metrics["best"]["dice"] > 0.7


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["crkd", "supervised"])
def test_a_step_never_makes_the_host_wait_for_the_gpu(tiny: Planner, method: str) -> None:
    run = start(tiny(f"method={method}", "train.device=cuda"))
    raws = [run.loader.read(step) for step in range(4)]

    def step(number: int) -> None:
        losses = run.method.losses(run.loader.batch(raws[number], number), number)
        losses["total"].backward()
        run.optimizer.step(losses["total"], 0.01)
        run.method.after_step(number)

    step(0)  # libraries set themselves up
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        for number in (1, 2, 3):
            step(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_stopped_early_and_continued_is_bit_equal_to_a_run_in_one_go(tiny: Planner) -> None:
    """The schedules of a run that stops early are those of the whole run."""
    whole = tiny("train.eval_every=20", out="whole")
    train(start(whole), quiet)
    early = tiny("train.eval_every=20", stop_after=7)
    metrics = train(start(early), quiet)
    assert metrics["steps"] == load_checkpoint(early.folder / "last.pth").step == 7
    assert metrics["best"]["step"] == 7  # validated where it stopped
    assert tiny("train.eval_every=20", stop_after=7).finished
    later = tiny("train.eval_every=20")
    assert not later.finished
    train(start(later), quiet)
    assert_equal(weights(whole.folder), weights(later.folder))


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_run_cannot_stop_after_its_end(tiny: Planner) -> None:
    with pytest.raises(
        UsageError, match=r"^--stop-after 21 is beyond the run's last step; train\.steps = 20$"
    ):
        tiny(stop_after=21)


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_resuming_keeps_the_precision_that_was_measured(tiny: Planner) -> None:
    """Whatever this machine would choose today; but what the user names goes before it."""
    planned = tiny("train.precision=auto", stop_after=2)
    train(start(planned), quiet)
    last = planned.folder / "last.pth"
    for kept, precision in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        save_checkpoint(replace(load_checkpoint(last), precision=kept), last)
        run = start(tiny("train.precision=auto"))
        assert run.precision == precision
        run.lock.release()
