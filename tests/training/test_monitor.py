"""Runs that go wrong say so once: pseudo-labels whose class shares leave those of the labels, and a fall on validation."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from crkd_cli.runtime import metrics_log as journal
from crkd_cli.training.loop import train
from crkd_cli.training.monitor import TrainingMonitor, label_shares
from crkd_cli.training.plan import Plan
from crkd_cli.training.start import start

Planner = Callable[..., Plan]
CLASSES = ("background", "lumen", "wall")


def told(
    lines: dict[int, dict[str, float | None]], watch: TrainingMonitor | None = None
) -> dict[int, list[str]]:
    """The warnings after every one of `lines`, {step: values}, of a run of 1,000 steps; steps without one are left out."""
    watch = watch or TrainingMonitor(CLASSES, 1000)
    warnings = {step: watch(step, values) for step, values in lines.items()}
    return {step: texts for step, texts in warnings.items() if texts}


def shares(lumen: float | None, wall: float = 0.02) -> dict[str, float | None]:
    return {"share_1": lumen, "share_2": wall, "label_share_1": 0.01, "label_share_2": 0.02}


def test_a_class_that_starves_is_told_after_a_tenth_of_the_run() -> None:
    lines = {step: shares(0.0019 if step >= 300 else 0.0021) for step in range(50, 1001, 50)}
    warnings = told(lines)
    assert list(warnings) == [400]
    (text,) = warnings[400]
    assert text.startswith(
        "warning: lumen has been 0.19 % of the pseudo-labels since step 300, but is 1 % of the labels; "
    )
    assert "lower the method's confidence" in text


def test_a_class_that_floods_is_told_in_the_other_direction() -> None:
    (text,) = told({step: shares(0.01, wall=0.11) for step in (100, 150, 200)})[200]
    assert text.startswith(
        "warning: wall has been 11 % of the pseudo-labels since step 100, but is 2 % of the labels; "
    )
    assert "raise the method's confidence" in text


def test_a_share_that_comes_back_in_time_and_the_first_tenth_are_not_told() -> None:
    back = {step: shares(0.0 if step % 150 else 0.01) for step in range(50, 1001, 50)}
    assert told(back) == {}
    assert told({50: shares(0.0), 100: shares(0.0), 150: shares(0.0), 199: shares(0.0)}) == {}
    assert (
        told({step: shares(None) for step in (100, 200, 300)}) == {}
    )  # not finite: told elsewhere
    assert told({step: {"share_agreed": 0.0, "total": 1.0} for step in (100, 200, 300)}) == {}


def test_a_fall_below_half_of_the_best_dice_is_told_once() -> None:
    dice = {100: 0.5, 200: 0.62, 300: 0.32, 400: 0.3, 500: 0.7, 600: 0.1}
    warnings = told({step: {"val/dice": value} for step, value in dice.items()})
    assert list(warnings) == [400]
    (text,) = warnings[400]
    assert text.startswith(
        "warning: validation Dice fell to 30.0 % at step 400, from 62.0 % at step 200, which best.pth keeps"
    )


def test_a_resumed_run_goes_on_counting_and_does_not_repeat() -> None:
    lines = {step: shares(0.0) for step in range(100, 301, 50)}
    early = [{"step": step, **values} for step, values in lines.items() if step <= 150]
    assert list(told({200: shares(0.0)}, TrainingMonitor(CLASSES, 1000, early))) == [200]
    late = [{"step": step, **values} for step, values in lines.items()]
    assert told({350: shares(0.0)}, TrainingMonitor(CLASSES, 1000, late)) == {}


def test_the_labels_share_is_the_mean_of_all_lines_so_far() -> None:
    lines = {
        step: {"share_1": 0.3, "label_share_1": share}
        for step, share in ((100, 0.02), (150, 0.0), (200, 0.07))
    }
    (text,) = told(lines)[200]  # 0.03: the last line alone would allow 0.35
    assert text.startswith(
        "warning: lumen has been 30 % of the pseudo-labels since step 100, but is 3 % of the labels; "
    )
    assert journal.mean_label_shares([{"step": 1, **line} for line in lines.values()]) == {
        "share_1": pytest.approx(0.03)
    }


def test_label_shares_by_hand() -> None:
    label = torch.tensor([[[0, 1], [2, 2]], [[0, 0], [2, 0]]])
    assert label_shares(label, 4) == {
        "label_share_1": 0.125,
        "label_share_2": 0.375,
        "label_share_3": 0.0,
    }


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_run_whose_teacher_sees_no_organ_says_so(tiny: Planner) -> None:
    run = start(tiny("train.log_every=1"))
    with torch.no_grad():
        run.method.teacher.network.decoder.output.bias[0] += 1000.0
    run.method.after_step = lambda step: None  # type: ignore[method-assign]    # the teacher stays as it is
    warnings: list[str] = []
    train(replace(run, val=[]), lambda step, values: None, warnings.append)
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "warning: disc has been 0 % of the pseudo-labels since step 2, but is "
    )
    log = [
        json.loads(line)
        for line in (run.checkpoint.path.parent / "log.jsonl").read_text().splitlines()
    ]
    drawn = [run.loader.batch(run.loader.read(step), step).labeled.label for step in range(20)]
    assert [line["label_share_1"] for line in log] == pytest.approx(
        [(y == 1).float().mean().item() for y in drawn], rel=1e-4
    )
