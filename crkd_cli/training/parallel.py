"""Several runs at once: `crkd` commands in processes that share a device and stop together."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue

import torch

from crkd_cli import world
from crkd_cli.errors import CrkdError
from crkd_cli.training.interruptions import SIGNALS, SignalCatcher

# Called with the name of a run and a line that it printed, or None once it has ended.
ShowLine = Callable[[str, str | None], None]


class RunsStoppedError(CrkdError):
    """A signal ended all runs; everything is saved. Exit code 128 + the signal."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(
            f"stopped by {name}; everything is saved; rerun the same command to resume"
        )
        self.exit_code = 128 + number


class RunsFailedError(CrkdError):
    """Some of `count` runs failed, as their output says. Exit code of the first that failed."""

    def __init__(self, exit_codes: dict[str, int], count: int) -> None:
        super().__init__(
            f"{len(exit_codes)} of {count} runs failed ({', '.join(exit_codes)}); rerun the same "
            "command once the cause is fixed: it skips finished runs"
        )
        self.exit_code = next(iter(exit_codes.values()))


def run_parallel(commands: Mapping[str, Sequence[str]], at_once: int, show: ShowLine) -> None:
    """Run `crkd` with the arguments of each of the named `commands`, at most `at_once` at a time.

    A run that fails does not end the others. SIGTERM, SIGINT and SIGUSR1 stop all of them.

    Raises RunsStoppedError after a signal, RunsFailedError if a run failed.
    """
    pool = _Pool(commands, at_once, show)
    with SignalCatcher(pool.on_signal) as signals:
        pool.run()
    if signals.received:
        raise RunsStoppedError(signals.received)
    if pool.failed:
        raise RunsFailedError(pool.failed, len(commands))


def watch_parent() -> None:
    """In a process of `run_parallel`, treat the end of stdin as a SIGTERM.

    The other end of this pipe is closed to stop the run, or because the parent was killed.
    """
    if world.runs() == 1:
        return

    def wait() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


class _Child:
    """A run in its own process.

    Puts its lines into `events` as (child, line), and (child, None) once its output has ended.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], environment: dict[str, str], events: "_Events"
    ) -> None:
        self.name = name
        self.error: str | None = None  # the last line, if it is an error that was not shown yet
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "crkd_cli", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal signals this process alone
        )
        threading.Thread(target=self._read, args=(events,), daemon=True).start()

    def stop(self) -> None:
        """Make the run save and end."""
        assert self._process.stdin
        self._process.stdin.close()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self.wait()

    def wait(self) -> int:
        """Return the exit code of the process, or minus the signal that killed it."""
        self.stop()
        return self._process.wait()

    def _read(self, events: "_Events") -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                events.put((self, line.rstrip()))
        events.put((self, None))


_Event = tuple[_Child, str | None] | None  # a child's line or end; None: a signal came
_Events = SimpleQueue[_Event]


class _Pool:
    """The commands that wait, those that run, and those that failed."""

    def __init__(self, commands: Mapping[str, Sequence[str]], at_once: int, show: ShowLine) -> None:
        self.failed: dict[str, int] = {}  # exit codes
        self._waiting = list(commands.items())
        self._running: list[_Child] = []
        self._at_once, self._show = at_once, show
        self._environment = _environment(at_once)
        self._stopping = False
        self._events: _Events = SimpleQueue()  # its put is safe in a signal handler

    def on_signal(self) -> None:
        """Stop all runs once the current event is handled."""
        self._events.put(None)

    def run(self) -> None:
        """Return when all runs have ended."""
        try:
            self._start_waiting()
            while self._running:
                self._handle(self._events.get())
        finally:  # after a second Ctrl-C, some are still running
            for child in self._running:
                child.kill()

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < self._at_once and not self._stopping:
            child = _Child(*self._waiting.pop(0), self._environment, self._events)
            self._running.append(child)

    def _handle(self, event: _Event) -> None:
        if event is None:
            self._stopping = True
            for child in self._running:
                child.stop()
            return
        child, line = event
        if line is None:
            self._running.remove(child)
            self._finish(child)
            self._start_waiting()
        else:
            self._show_line(child, line)

    def _show_line(self, child: _Child, line: str) -> None:
        """Show a line, but an error only once it is known whether it was the last line."""
        if child.error:
            self._show(child.name, child.error)
        child.error = line if line.startswith("error: ") else None
        if not child.error:
            self._show(child.name, line)

    def _finish(self, child: _Child) -> None:
        """Show why a run ended, unless it was asked to, and note its failure."""
        code = child.wait()
        exit_code = code if code >= 0 else 128 - code
        stopped = self._stopping and exit_code - 128 in SIGNALS
        if code and not stopped:
            self.failed[child.name] = exit_code
            child.error = child.error or f"error: {_describe_exit(code)}"
        if child.error and not stopped:
            self._show(child.name, child.error)
        self._show(child.name, None)


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _environment(at_once: int) -> dict[str, str]:
    """Return the environment of each of `at_once` runs, which share the cores of this machine."""
    threads = max(1, torch.get_num_threads() // at_once)
    return {
        "OMP_NUM_THREADS": str(threads),  # unless the user has set it
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),  # with -P: the same modules as in this process
        world.RUNS: str(at_once),
    }
