"""The lines that piped commands print of their progress."""

import time
from collections.abc import Callable, Iterator

import pytest

from crkd_cli.cli.bars import LineSchedule, progress, run_output

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """wait(seconds) moves the clock."""
    now = 0.0

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    return advance


@pytest.mark.parametrize(
    ("total", "seconds", "often", "expected"),
    [
        (100, 60.0, False, range(5, 101, 5)),  # every twentieth
        (100, 1.0, False, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),  # 10 seconds apart
        (100, 400.0, False, [k for k in range(1, 101) if k % 5 in (0, 2, 4)]),  # and after 800 s
        (100, 5.0, True, range(2, 101, 2)),
        (7, 0.5, False, [7]),
        (None, 4.0, False, range(3, 101, 3)),
    ],
)
def test_when_lines_are_due(
    total: int | None,
    seconds: float,
    often: bool,
    expected: range | list[int],
    wait: Callable[[float], None],
) -> None:
    schedule = LineSchedule(0, total, often=often)
    due = []
    for done in range(1, (total or 100) + 1):
        wait(seconds)
        if schedule.due(done):
            due.append(done)
    assert due == list(expected)


def test_lines_state_rate_and_time_left(wait: Callable[[float], None], capsys: Capture) -> None:
    with progress("training", 40, "steps", 20) as advance:
        wait(30.0)
        advance(10, "val Dice 0.7")
        wait(600.0)
        advance(1)
    slow = "training 31/40 steps, 57.3 s/step, 9 min left  val Dice 0.7"
    assert capsys.readouterr().err.splitlines() == [
        "training 30/40 steps, 3.0 s/step, 30 s left  val Dice 0.7",
        slow,
    ]
    with progress("unpacking", 200, "MB") as advance:
        wait(20.0)
        advance(50)
    assert capsys.readouterr().err == "unpacking 50/200 MB, 2.5 MB/s, 1 min left\n"


def test_of_parallel_runs_the_lines_that_are_due(
    wait: Callable[[float], None], capsys: Capture
) -> None:
    """Each run prints a line every ten seconds; those of a twentieth each, 50 s, are shown."""
    with run_output(["seed 1", "seed 2"]) as show:
        show("seed 2", "loading PyTorch")
        for step in range(0, 101, 1):
            show("seed 1", f"training {step}/100 steps, 10 s/step")
            wait(10.0)
        show("seed 1", None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "seed 2: loading PyTorch"
    assert lines[1:] == [
        f"seed 1: training {step}/100 steps, 10 s/step" for step in range(5, 101, 5)
    ]
