"""`crkd train --budget`: a run is timed, shortened to fit, and resumed with the same schedule."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import Result

from crkd_cli.config import TrainConfig
from crkd_cli.errors import UsageError
from crkd_cli.methods.bcp import SELF_TRAINING, WARMUP
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.training.budget import Schedule, announce_time, fit, parse_budget
from crkd_cli.training.timing import Timing, measure, spread, time_by_phase
from tests.command_server import CommandServer
from tests.training.helpers import (
    Planner,
    assert_equal,
    train_arguments,
    train_plan,
    weights,
)
from tests.training.processes import run_two

Cli = Callable[..., Result]
in_2d = pytest.mark.parametrize("dims", [2], indirect=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45m", 2700), ("6h", 21600), ("1h30m", 5400), ("1.5h", 5400), (" 90s ", 90), ("1m30s", 90)],
)
def test_a_budget_is_a_time(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "0h", "6", "-1h", "30m1h", "1d", "h", "1 h", "nan"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--budget .*: expected a time such as 45m, 6h or 1h30m"):
        parse_budget(text)


def test_a_run_that_fits_is_not_changed() -> None:
    """By hand: 900 steps of 2 s and 9 validations of 30 s take 2,070 s."""
    train = TrainConfig(steps=900, eval_every=100)
    assert Timing(2.0, 30.0).seconds(900, 100) == 2070
    assert fit(Timing(2.0, 30.0), 2070, train) == Schedule(900, 100)
    assert fit(Timing(2.0, 30.0), 2069, train) != Schedule(900, 100)


def test_a_run_that_does_not_fit_is_shortened() -> None:
    train = TrainConfig(steps=9000, eval_every=100)
    # By hand: 6 validations of 30 s are the most that a fifth of 1,000 s allows. In the other
    # 820 s there is time for 410 steps, and so for 68 before each validation.
    assert fit(Timing(2.0, 30.0), 1000, train) == Schedule(408, 68)
    assert fit(Timing(2.0, 3.0), 1000, train) == Schedule(480, 48)  # ten validations
    assert fit(Timing(2.0, 0.0), 1000, train) == Schedule(500, 50)
    # With a validation every 100 steps: n steps and n / 100 validations, and one at the end.
    assert fit(Timing(2.0, 30.0), 1000, train, keep_eval_every=True) == Schedule(421, 100)


@given(
    step=st.floats(1e-3, 100),
    validation=st.floats(0, 1000),
    seconds=st.floats(1, 1e6),
    steps=st.integers(1, 10**6),
    eval_every=st.integers(1, 10**4),
    keep=st.booleans(),
)
def test_a_schedule_never_takes_longer(
    step: float, validation: float, seconds: float, steps: int, eval_every: int, keep: bool
) -> None:
    timing, train = Timing(step, validation), TrainConfig(steps=steps, eval_every=eval_every)
    schedule = fit(timing, seconds, train, keep_eval_every=keep)
    assert 0 <= schedule.steps <= steps
    assert schedule.eval_every >= 1
    if schedule.steps:
        assert timing.seconds(*schedule) <= seconds * (1 + 1e-9)
    if keep:
        assert schedule.eval_every == eval_every


def test_the_timed_steps_are_spread_over_the_run() -> None:
    assert spread(10000, 20) == list(range(250, 10000, 500))
    assert spread(3, 20) == [0, 1, 2]


def test_each_phase_is_warmed_up() -> None:
    """Phase 1 begins at step 30, and its steps take longer; the first step of a phase twice it."""
    taken: list[int] = []

    def take(number: int) -> float:
        taken.append(number)
        first = taken.count(number) == 1 and number in (10, 30)
        return (1.0 if number < 30 else 3.0) * (2 if first else 1)

    def phase_at(number: int) -> int:
        return SELF_TRAINING if number >= 30 else WARMUP

    assert time_by_phase([10, 20, 30, 40], phase_at, take, 1) == [1.0, 1.0, 3.0, 3.0]
    assert taken == [10, 10, 20, 30, 30, 40]


@pytest.mark.slow
def test_timing_does_not_change_the_run(tiny: Planner, tmp_path: Path) -> None:
    timing = measure(tiny("train.steps=4", out="a"))
    assert timing.step > 0
    assert timing.validation > 0
    assert timing.measuring > 4 * timing.step
    assert not (tmp_path / "a").exists()
    for out in ("a", "b"):
        train_plan(tiny("train.steps=4", out=out))
    assert_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.fixture
def long_run(tiny: Planner, tmp_path: Path) -> list[str]:
    """The arguments of `crkd train` for a run of ten million steps."""
    tiny()
    file = tmp_path / "config.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("steps: 20\n", "steps: 10000000\n"), encoding="utf-8")
    return train_arguments(tmp_path)


@in_2d
@pytest.mark.slow
def test_a_run_is_shortened_and_resumed_as_it_began(
    long_run: list[str], cli: Cli, tmp_path: Path
) -> None:
    line = [*long_run, "--budget", "1m"]
    first = cli(*line, "--stop-after", "2")
    assert first.exit_code == 0, first.stderr
    text = re.search(r"time: ([\d,]+) of 10,000,000 steps, about", first.stderr)
    assert text, first.stderr
    steps = int(text[1].replace(",", ""))
    second = cli(*line, "--stop-after", "4")
    assert second.exit_code == 0, second.stderr
    assert f"{steps:,} steps, as {tmp_path / 'run'} began, whatever the budget" in second.stderr
    assert "timing" not in second.stderr
    done = load_checkpoint(tmp_path / "run" / "last.pth")
    assert (done.step, done.config.train.steps) == (4, steps)
    assert steps % done.config.train.eval_every == 0


@in_2d
@pytest.mark.slow
def test_all_seeds_get_one_schedule(long_run: list[str], cli: Cli, tmp_path: Path) -> None:
    result = cli(*long_run, "--budget", "1m", "--seeds", "1,2", "--stop-after", "2")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("timing a few steps") == 1
    first, second = (load_checkpoint(tmp_path / f"run-seed{n}" / "last.pth") for n in (1, 2))
    assert first.config.train.steps == second.config.train.steps


@in_2d
@pytest.mark.slow
def test_several_processes_agree_on_the_schedule(
    long_run: list[str], crkd: CommandServer, tmp_path: Path
) -> None:
    ranks = run_two(crkd, tmp_path, *long_run, "--budget", "1m", "--stop-after", "2")
    assert [rank.code for rank in ranks] == [0, 0], ranks
    assert load_checkpoint(tmp_path / "run" / "last.pth").step == 2


@in_2d
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "1"], "--budget '1': expected a time such as 45m"),
        (["--budget", "1h", "--set", "train.steps=9"], "--budget and --set train.steps both set"),
        (["--budget", "1h", "--seeds", "1,2", "--parallel", "2"], "--budget times a run that is"),
    ],
)
def test_usage_errors(
    tiny: Planner, cli: Cli, tmp_path: Path, options: list[str], message: str
) -> None:
    tiny()
    result = cli(*train_arguments(tmp_path), *options)
    assert result.exit_code == 2
    assert f"error: {message}" in result.stderr
    assert not (tmp_path / "run").exists()


@in_2d
@pytest.mark.slow
def test_too_short_a_budget_names_a_longer_one(tiny: Planner, cli: Cli, tmp_path: Path) -> None:
    tiny()
    result = cli(*train_arguments(tmp_path), "--budget", "0.01s")
    assert result.exit_code == 2
    assert re.search(r"error: --budget 0.01s is too short: .*; give at least \d+m", result.stderr)
    assert not (tmp_path / "run").exists()


@in_2d
@pytest.mark.slow
def test_a_long_run_says_how_long_it_takes(tiny: Planner) -> None:
    lines: list[str] = []
    announce_time(tiny("train.steps=900"), 1, lines.append)
    assert not lines
    announce_time(tiny("train.steps=100000000"), 1, lines.append)
    timing, time = lines
    assert timing == "timing a few steps"
    assert re.fullmatch(
        r"time: 100,000,000 steps take about \d+ h; --budget 1h would train [\d,]+", time
    )
