"""A closed terminal: the run is saved as for SIGTERM."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crkd_cli import world
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.training.interruptions import SIGNALS, SignalCatcher
from tests.training.helpers import Planner, set_options, train_arguments
from tests.training.processes import wait_for_steps

in_2d = pytest.mark.parametrize("dims", [2], indirect=True)
PROGRAM = ["env", "--default-signal=HUP", sys.executable]
ENDLESS = ("train.steps=100000", "train.log_every=1", "train.eval_every=100000")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore the handlers of all signals; SIGHUP starts with its own, even under nohup."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_terminal_may_close_several_times(handlers: None) -> None:
    """The kernel sends SIGHUP, and so does the shell; the run is not yet saved when both came."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with SignalCatcher() as signals:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert signals.received == signal.SIGHUP
        signal.raise_signal(signal.SIGTERM)  # acts as before, that is, not at all
        assert signals.received == signal.SIGHUP
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_the_first_signal_counts(handlers: None) -> None:
    with SignalCatcher() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        assert signals.received == signal.SIGTERM


@pytest.mark.parametrize(("processes", "silenced"), [(1, True), (2, False)])
def test_torchrun_does_not_silence_a_process_that_reports_an_error(
    handlers: None, monkeypatch: pytest.MonkeyPatch, processes: int, silenced: bool
) -> None:
    """When one process has ended, torchrun sends SIGTERM to the others."""
    monkeypatch.setattr(world, "size", lambda: processes)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with pytest.raises(RuntimeError, match="lost"), SignalCatcher():
        raise RuntimeError("a process was lost")
    assert (signal.getsignal(signal.SIGTERM) is signal.SIG_DFL) == silenced


def test_nohup_keeps_a_run_alive(handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with SignalCatcher() as signals:
        signal.raise_signal(signal.SIGHUP)
        assert signals.received == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@in_2d
@pytest.mark.slow
@pytest.mark.parametrize("parallel", [False, True])
def test_a_closed_terminal_ends_a_run_saved(tiny: Planner, tmp_path: Path, parallel: bool) -> None:
    """In a terminal with progress bars: SIGHUP comes twice, and every line meets an error."""
    tiny()
    command = [*PROGRAM, "-m", "crkd_cli", *train_arguments(tmp_path), *set_options(ENDLESS)]
    folder = tmp_path / "run"
    if parallel:
        command += ["--seeds", "1,2", "--parallel", "2"]
        folder = tmp_path / "run-seed1"
    script = f"import pty, sys; sys.exit(pty.spawn({command!r}))"
    terminal = subprocess.Popen(
        [*PROGRAM, "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"},
    )
    wait_for_steps(folder, 3)
    (run,) = _children(terminal.pid)
    os.kill(run, signal.SIGHUP)
    terminal.kill()  # closes the terminal, which sends another SIGHUP
    terminal.wait()
    _wait_for_end(run)
    checkpoint = load_checkpoint(folder / "last.pth")
    assert checkpoint.step >= 3
    assert not list(folder.glob(".tmp-*"))


@in_2d
@pytest.mark.slow
def test_sighup_is_like_sigterm(tiny: Planner, tmp_path: Path) -> None:
    tiny()
    command = [*PROGRAM, "-m", "crkd_cli", *train_arguments(tmp_path), *set_options(ENDLESS)]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(command, stdout=full, stderr=full)
    wait_for_steps(tmp_path / "run", 2)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 129
    assert load_checkpoint(tmp_path / "run" / "last.pth").step >= 2


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def _wait_for_end(pid: int) -> None:
    """Wait for a process that is not a child of this one."""
    handle = os.pidfd_open(pid)
    try:
        assert select.select([handle], [], [], 60)[0], "the run did not end"
    finally:
        os.close(handle)
