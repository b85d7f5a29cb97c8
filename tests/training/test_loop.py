"""The training loop: equal to a plainly written one, and bit-exact after it was stopped."""

import signal
import warnings
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from crkd_cli.data.splits import split_file, write_split
from crkd_cli.data.store import numbered_classes, write_index
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method
from crkd_cli.runtime.build import build_method
from crkd_cli.runtime.checkpoint import load_checkpoint, save_checkpoint
from crkd_cli.runtime.metrics_log import MetricsLog
from crkd_cli.schedules import multistep, poly
from crkd_cli.training.batches import build_loader, step_seed
from crkd_cli.training.interruptions import StoppedBySignalError
from crkd_cli.training.loop import train
from crkd_cli.training.plan import Plan, Request, plan
from crkd_cli.training.start import start
from crkd_cli.training.step import TrainingStep
from tests.training.helpers import (
    CPU,
    Planner,
    assert_equal,
    logged,
    quiet,
    read_lines,
    signal_after,
    train_plan,
    weights,
)

slow_in_3d = pytest.mark.parametrize(
    "dims", [2, pytest.param(3, marks=pytest.mark.slow)], indirect=True
)


@pytest.mark.parametrize(
    ("method", "updates"),
    [("crkd", 1), ("supervised", 1), pytest.param("supervised", 3, marks=pytest.mark.slow)],
)
def test_parity_with_a_plain_loop(
    tiny: Planner, monkeypatch: pytest.MonkeyPatch, method: str, updates: int
) -> None:
    """20 steps of the loop against forward, backward and torch's own SGD, bit for bit.

    A step is a batch, on which a method may ask for several updates.
    """
    monkeypatch.setattr(METHODS[method], "updates", updates)
    planned = tiny(f"method={method}")
    train_plan(planned)
    plain = build_method(planned.config, planned.store.spec)
    initial = {name: value.clone() for name, value in plain.state_dict().items()}
    train_plainly(plain, planned, updates)

    assert load_checkpoint(planned.folder / "last.pth").step == 20
    trained = weights(planned.folder)
    assert_equal(plain.state_dict(), trained)
    changed = [name for name, value in initial.items() if not torch.equal(value, trained[name])]
    assert len(changed) > len(initial) / 2


def train_plainly(plain: Method, planned: Plan, updates: int) -> None:
    config = planned.config
    data = build_loader(config, planned.store, planned.split, type(plain), CPU)
    parameters = [p for p in plain.parameters() if p.requires_grad]
    sgd = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    plain.train()
    for step in range(20):
        batch = data.batch(data.read(step), step)
        torch.manual_seed(step_seed(config.train.seed, step))
        sgd.param_groups[0]["lr"] = 0.01 * (1 - step / 20) ** 0.9
        for _ in range(updates):
            sgd.zero_grad()
            plain.losses(batch, torch.tensor(float(step)).double())["total"].backward()
            sgd.step()
        plain.after_step(torch.tensor(float(step)).double())


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
    step = run.optimizer.step

    def record(loss: Tensor) -> Tensor:
        rates.append(run.optimizer.lr.item())
        return step(loss)

    run.optimizer.step = record  # type: ignore[method-assign]
    train(replace(run, val=[]), quiet)
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("dims", "number"),
    [
        (2, signal.SIGTERM),
        pytest.param(3, signal.SIGTERM, marks=pytest.mark.slow),
        (2, signal.SIGINT),
        pytest.param(2, signal.SIGUSR1, marks=pytest.mark.slow),
    ],
    indirect=["dims"],
)
def test_stopped_by_a_signal_and_resumed_is_bit_equal(
    tiny: Planner, number: signal.Signals
) -> None:
    whole = tiny(out="whole")
    train_plan(whole)
    with pytest.raises(StoppedBySignalError) as stopped:
        train_plan(tiny(out="parts"), signal_after(5, number))
    assert stopped.value.exit_code == 128 + number
    resumed = tiny(out="parts")
    assert resumed.resumed is not None
    assert 5 <= resumed.resumed.step < 20
    train_plan(resumed)
    assert_equal(weights(whole.folder), weights(resumed.folder))
    assert_equal(weights(whole.folder, "best.pth"), weights(resumed.folder, "best.pth"))
    assert tiny(out="parts").finished
    # Each on its own: a score may be logged after lines of later steps.
    for name in ("total", "val/dice"):
        steps = [line["step"] for line in read_lines(resumed.folder) if name in line]
        assert steps == sorted(set(steps))
        assert steps[-1] == 20


@slow_in_3d
def test_extending_a_finished_run(tiny: Planner) -> None:
    train_plan(tiny("train.steps=5"))
    assert tiny("train.steps=5").finished
    longer = tiny("train.steps=8")
    assert not longer.finished
    run = start(longer)
    assert run.method.task.steps == 8  # the length of the ramps
    train(run, quiet)
    assert load_checkpoint(longer.folder / "last.pth").step == 8
    with pytest.raises(UsageError, match=r"8 steps done, now train\.steps = 5"):
        tiny("train.steps=5")


@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.parametrize(("labeled", "name"), [("02", "toy-crkd-2"), ("5.0%", "toy-crkd-5pct")])
def test_the_folder_does_not_depend_on_how_the_label_count_is_typed(
    tiny: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labeled: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    planned = tiny()
    write_split(planned.split, split_file(planned.store, labeled))
    request = Request(
        dataset="toy",
        labeled=labeled,
        method=None,
        config=planned.source,
        split=None,
        out=None,
        sets=[],
        data_root=Path("data"),
    )
    assert plan(request).folder == Path("runs") / name


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_run_folder_is_locked_by_one_process(tiny: Planner) -> None:
    first = start(tiny("train.steps=1", "method=supervised"))
    with pytest.raises(UsageError, match="another process is training in"):
        start(tiny("train.steps=1", "method=supervised"))
    start(tiny("train.steps=1", "method=supervised", out="other"))
    train(first, quiet)
    start(tiny("train.steps=2", "method=supervised"))


@slow_in_3d
def test_other_settings_in_the_same_folder_are_refused(tiny: Planner) -> None:
    planned = tiny("train.steps=2")
    train_plan(planned)
    with pytest.raises(UsageError, match=r"train\.lr = 0\.01, now 0\.5"):
        tiny("train.steps=2", "train.lr=0.5")
    (planned.folder / "best.pth").replace(planned.folder / "last.pth")
    with pytest.raises(CrkdError, match=r"last\.pth lacks the optimizer"):
        tiny("train.steps=3")
    spec = msgspec.structs.replace(
        planned.store.spec, classes=numbered_classes(("background", "ball"))
    )
    write_index(planned.store.root, msgspec.structs.replace(planned.store.index, spec=spec))
    with pytest.raises(UsageError, match=r"\(class number 1 was disc \(1\), now ball \(1\)\)"):
        tiny("train.steps=2")


def test_a_full_disk_under_the_log_is_one_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, tensorboard=False)
    log.file.unlink()
    log.file.symlink_to("/dev/full")
    with pytest.raises(CrkdError, match=rf"cannot write {log.file}: No space left"):
        log.write(1, {"total": 1.0})


@slow_in_3d
def test_unlabeled_labels_are_never_opened(tiny: Planner) -> None:
    """Deleting the labels of the unlabeled cases leaves the weights the same."""
    with_labels = tiny("train.steps=8", out="with")
    train_plan(with_labels)
    for group in with_labels.split.unlabeled:
        (with_labels.store.root / "labels" / f"{group}.npy").unlink()
    without = tiny("train.steps=8", out="without")
    train_plan(without)
    assert_equal(weights(with_labels.folder), weights(without.folder))


@pytest.mark.parametrize("side", [8, 32])
def test_no_bf16_on_a_cpu_where_its_gradient_is_wrong(tiny: Planner, dims: int, side: int) -> None:
    """A first side of 4, 8, 16 or 32 leads to one of 2: oneDNN's weight gradient varies there."""
    if dims == 2:
        assert start(tiny("train.precision=bf16")).precision == torch.bfloat16
        return
    frame = f"data.frame={{patch: [{side}, 32, 16]}}"
    assert start(tiny("train.precision=auto", frame, out="auto")).precision == torch.float32
    with pytest.raises(UsageError, match=f"first side is {side}"):
        start(tiny("train.precision=bf16", frame, out="bf16"))
    large = tiny("train.precision=bf16", "data.frame={patch: [48, 32, 16]}", out="large")
    assert start(large).precision == torch.bfloat16


@slow_in_3d
def test_run_folder(tiny: Planner) -> None:
    planned = tiny()
    reports: list[dict[str, float]] = []

    def report(step: int, values: dict[str, float]) -> None:
        if values:
            reports.append(values)

    metrics = train_plan(planned, report)
    assert list(logged(planned.folder, "total")) == [5, 10, 15, 20]
    scores = logged(planned.folder, "val/dice")
    assert list(scores) == [10, 20]
    best = load_checkpoint(planned.folder / "best.pth")
    assert best.step == metrics["best"]["step"] == max(scores, key=lambda step: scores[step])
    assert best.training is None
    terms = {"labeled", "pseudo", "pixel", "feature", "semantic", "entropy", "kept", "share_1"}
    assert terms <= reports[-1].keys()
    assert (planned.folder / "config.yaml").is_file()
    assert not list(planned.folder.glob(".tmp-*"))


@slow_in_3d
def test_training_learns(tiny: Planner) -> None:
    planned = tiny("method=supervised", "train.steps=80", "train.eval_every=80", "train.lr=0.05")
    assert train_plan(planned)["best"]["dice"] > 0.7


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["crkd", "supervised"])
@pytest.mark.parametrize("augment", ["published", "strong"])
def test_a_step_never_makes_the_host_wait_for_the_gpu(
    tiny: Planner, method: str, augment: str
) -> None:
    run = start(tiny(f"method={method}", f"data.augment={augment}", "train.device=cuda"))
    items = [run.loader.read(step) for step in range(20)]  # so many that all transforms are drawn

    config, classes = run.checkpoint.config.train, len(run.checkpoint.spec.classes)
    training_step = TrainingStep(run.method, run.optimizer, config, classes, run.precision)

    def step(number: int) -> None:
        batch = run.loader.batch(items[number], number)
        training_step.prepare(number)
        training_step.run(batch)

    step(0)  # the libraries initialize
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(1, len(items)):
            step(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_stopped_early_and_continued_is_bit_equal(tiny: Planner) -> None:
    """A run that stops early has the schedules of the full run."""
    whole = tiny("train.eval_every=20", out="whole")
    train_plan(whole)
    early = tiny("train.eval_every=20", stop_after=7)
    metrics = train_plan(early)
    assert metrics["steps"] == load_checkpoint(early.folder / "last.pth").step == 7
    assert metrics["best"]["step"] == 7  # validated where it stopped
    assert tiny("train.eval_every=20", stop_after=7).finished
    later = tiny("train.eval_every=20")
    assert not later.finished
    train_plan(later)
    assert_equal(weights(whole.folder), weights(later.folder))


@pytest.mark.slow
def test_the_strong_augmentation_is_the_same_when_resumed(tiny: Planner) -> None:
    """With the choice of foreground that belongs to it."""
    sampled = ("data.augment=strong", "data.foreground=0.4", "train.log_every=1")
    whole = tiny(*sampled, out="whole")
    train_plan(whole)
    train_plan(tiny(*sampled, stop_after=7))
    train_plan(tiny(*sampled))
    assert_equal(weights(whole.folder), weights(tiny(*sampled).folder))
    plain = tiny("train.log_every=1", out="plain")
    train_plan(plain)
    assert logged(plain.folder, "total") != logged(whole.folder, "total")


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_run_cannot_stop_after_its_end(tiny: Planner) -> None:
    with pytest.raises(
        UsageError, match=r"^--stop-after 21 is beyond the run's last step; train\.steps = 20$"
    ):
        tiny(stop_after=21)


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_resuming_keeps_the_precision_that_was_measured(tiny: Planner) -> None:
    """Whatever this machine would choose today."""
    planned = tiny("train.precision=auto", stop_after=2)
    train_plan(planned)
    last = planned.folder / "last.pth"
    for kept, precision in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        save_checkpoint(replace(load_checkpoint(last), precision=kept), last)
        run = start(tiny("train.precision=auto"))
        assert run.precision == precision
        run.lock.release()
