"""Warnings about runs that go wrong: class shares of pseudo-labels, and a fall of validation."""

from dataclasses import replace

import pytest
import torch

from crkd_cli.data.batch import Labeled
from crkd_cli.runtime.metrics_log import mean_label_shares
from crkd_cli.training.loop import train
from crkd_cli.training.monitor import TrainingMonitor, label_shares
from crkd_cli.training.start import start
from tests.training.helpers import Planner, quiet, read_lines

CLASSES = ("background", "lumen", "wall")
STEPS = 1000
Values = dict[str, float | None]


def warnings_of(
    lines: dict[int, Values], monitor: TrainingMonitor | None = None
) -> dict[int, list[str]]:
    """The warnings about `lines`, {step: values}, by the steps that have any."""
    monitor = monitor or TrainingMonitor(CLASSES, STEPS)
    warnings = {step: monitor(step, values) for step, values in lines.items()}
    return {step: texts for step, texts in warnings.items() if texts}


def shares(lumen: float | None, wall: float = 0.02) -> Values:
    return {"share_1": lumen, "share_2": wall, "label_share_1": 0.01, "label_share_2": 0.02}


def test_a_class_that_is_too_rare_is_reported_after_a_tenth_of_the_run() -> None:
    lines = {step: shares(0.0019 if step >= 300 else 0.0021) for step in range(50, 1001, 50)}
    warnings = warnings_of(lines)
    assert list(warnings) == [400]
    (text,) = warnings[400]
    assert text.startswith(
        "warning: lumen has been 0.19 % of the pseudo-labels since step 300, "
        "but is 1 % of the labels; "
    )
    assert "lower the method's confidence" in text


def test_a_class_that_is_too_common_gets_the_opposite_advice() -> None:
    (text,) = warnings_of({step: shares(0.01, wall=0.11) for step in (100, 150, 200)})[200]
    assert text.startswith(
        "warning: wall has been 11 % of the pseudo-labels since step 100, "
        "but is 2 % of the labels; "
    )
    assert "raise the method's confidence" in text


@pytest.mark.parametrize(
    "lines",
    [
        # back to normal before a tenth of the run is over
        {step: shares(0.0 if step % 150 else 0.01) for step in range(50, 1001, 50)},
        # nothing is judged in the first tenth
        {step: shares(0.0) for step in (50, 100, 150, 199)},
        # not finite, which the loop reports
        {step: shares(None) for step in (100, 200, 300)},
        # not the share of a class
        {step: {"share_agreed": 0.0, "total": 1.0} for step in (100, 200, 300)},
    ],
)
def test_no_warning(lines: dict[int, Values]) -> None:
    assert warnings_of(lines) == {}


def test_a_fall_below_half_of_the_best_dice_is_reported_once() -> None:
    dice = {100: 0.5, 200: 0.62, 300: 0.32, 400: 0.3, 500: 0.7, 600: 0.1}
    warnings = warnings_of({step: {"val/dice": value} for step, value in dice.items()})
    assert list(warnings) == [400]
    (text,) = warnings[400]
    assert text.startswith(
        "warning: validation Dice fell to 30.0 % at step 400, from 62.0 % at step 200, "
        "which best.pth keeps"
    )


@pytest.mark.parametrize("undefined", [None, float("nan")])
def test_classes_that_no_validation_case_contains_are_named_once(undefined: float | None) -> None:
    some = {"val/dice": 0.4, "val/dice/lumen": 0.4, "val/dice/wall": undefined}
    line = "warning: no validation case contains wall, so best.pth is chosen by the other classes"
    monitor = TrainingMonitor(CLASSES, STEPS)
    assert warnings_of({10: some, 20: some, 500: some}, monitor) == {10: [line]}
    resumed = TrainingMonitor(CLASSES, STEPS, [{"step": 10, **some}])
    assert warnings_of({20: some}, resumed) == {}

    nothing = dict.fromkeys(some, undefined)
    line = (
        "warning: no validation case contains lumen, wall, so best.pth is not chosen, and the last "
        "checkpoint is the result"
    )
    assert warnings_of({10: nothing, 20: nothing, 500: nothing}) == {10: [line]}


def test_a_warning_names_a_few_of_many_classes() -> None:
    classes = ("background", *(f"c{k}" for k in range(1, 10)))
    values: Values = {f"val/dice/c{k}": None for k in range(1, 9)}
    (text,) = TrainingMonitor(classes, STEPS)(10, values | {"val/dice": 0.5, "val/dice/c9": 0.5})
    assert "contains c1, c2, c3, c4, c5 or 3 other classes, so" in text


def test_many_classes_with_wrong_shares_are_one_warning() -> None:
    """Six of eight classes are too rare from step 100 on, one from step 150, and one too common."""
    classes = ("background", *(f"c{k}" for k in range(1, 9)))
    labels: Values = {f"label_share_{k}": 0.01 for k in range(1, 9)}
    too_rare: Values = {f"share_{k}": 0.001 for k in range(1, 7)}
    lines = {
        step: labels | too_rare | {"share_7": 0.001 if step > 100 else 0.01, "share_8": 0.1}
        for step in (100, 150, 200, 250, 300)
    }
    warnings = warnings_of(lines, TrainingMonitor(classes, STEPS))
    assert [len(texts) for texts in warnings.values()] == [2, 1]
    rare, common = warnings[200]
    assert rare.startswith(
        "warning: 6 classes have been much rarer in the pseudo-labels than in the labels since "
        "step 100: c1 (0.1 % instead of 1 %), c2 (0.1 % instead of 1 %), c3 "
    )
    assert "c5 (0.1 % instead of 1 %), …; if they are as common" in rare
    assert common.startswith("warning: c8 has been 10 % of the pseudo-labels since step 100, but")
    assert warnings[250][0].startswith("warning: c7 has been 0.1 % of the pseudo-labels since")


def test_a_resumed_run_keeps_counting_and_does_not_repeat_warnings() -> None:
    lines = [{"step": step, **shares(0.0)} for step in range(100, 301, 50)]
    early = TrainingMonitor(CLASSES, STEPS, [line for line in lines if line["step"] <= 150])
    assert list(warnings_of({200: shares(0.0)}, early)) == [200]
    late = TrainingMonitor(CLASSES, STEPS, lines)
    assert warnings_of({350: shares(0.0)}, late) == {}


def test_the_share_of_the_labels_is_the_mean_of_all_lines_so_far() -> None:
    label_share = {100: 0.02, 150: 0.0, 200: 0.07}
    lines: dict[int, Values] = {
        step: {"share_1": 0.3, "label_share_1": share} for step, share in label_share.items()
    }
    (text,) = warnings_of(lines)[200]  # 0.03: the last line alone would allow 0.35
    assert text.startswith(
        "warning: lumen has been 30 % of the pseudo-labels since step 100, "
        "but is 3 % of the labels; "
    )
    log = [{"step": 1, **line} for line in lines.values()]
    assert mean_label_shares(log) == {"share_1": pytest.approx(0.03)}


def test_label_shares_by_hand() -> None:
    label = torch.tensor([[[0, 1], [2, 2]], [[0, 0], [2, 0]]])
    image = label[:, None].float()
    assert label_shares(Labeled(image, label), 4) == {
        "label_share_1": 0.125,
        "label_share_2": 0.375,
        "label_share_3": 0.0,
    }
    label[0, 0] = 4  # ignored: of six pixels that count, three are of class 2
    shares = label_shares(Labeled(image, label), 4, has_ignored=True)
    assert [share.item() for share in shares.values()] == pytest.approx([0.0, 0.5, 0.0])
    shares = label_shares(Labeled(image, label, torch.tensor([True, False])), 4, has_ignored=True)
    assert [share.item() for share in shares.values()] == [0.0, 0.25, 0.0]  # of the second label
    shares = label_shares(Labeled(image, label, torch.tensor([True, True])), 4)
    assert all(share.isnan() for share in shares.values())
    ignored = Labeled(image, torch.full_like(label, 4))
    assert not any(label_shares(ignored, 4, has_ignored=True).values())


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_a_run_whose_teacher_predicts_no_organ_warns(tiny: Planner) -> None:
    run = start(tiny("train.log_every=1"))
    with torch.no_grad():
        run.method.teacher.network.decoder.output.bias[0] += 1000.0
    # The teacher does not follow the student.
    run.method.after_step = lambda step: None  # type: ignore[method-assign]
    warnings: list[str] = []
    train(replace(run, val=[]), quiet, warnings.append)
    (text,) = warnings
    assert text.startswith("warning: disc has been 0 % of the pseudo-labels since step 2, but is ")
    labels = [run.loader.batch(run.loader.read(step), step).labeled.label for step in range(20)]
    expected = [(label == 1).float().mean().item() for label in labels]
    log = read_lines(run.checkpoint.path.parent)
    assert [line["label_share_1"] for line in log] == pytest.approx(expected, rel=1e-4)
