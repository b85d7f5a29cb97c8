"""Run the commands in forked children of a process that has imported everything.

A child costs 15 ms instead of the two seconds that the imports take. Crashes, hangs and the memory
of a command are seen from outside.
"""

import gc
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import NoReturn

MODULES = (
    "PIL.Image",
    "SimpleITK",
    "h5py",
    "matplotlib.figure",
    "nibabel",
    "pydantic",
    "pydicom",
    "rich.table",
    "scipy.ndimage",
    "crkd_cli.api",
    "crkd_cli.cli",
    "crkd_cli.data.make_splits",
    "crkd_cli.data.obtain",
    "crkd_cli.data.prepare",
    "crkd_cli.evaluation.evaluate",
    "crkd_cli.inference.predict",
    "crkd_cli.reporting.html",
    "crkd_cli.training.loop",
    "crkd_cli.training.start",
)
SECONDS = 20.0  # that a command on tiny inputs may take
GB = 1 << 30
# Above the memory of the imports, so that a runaway command ends before the machine suffers.
ADDRESS_SPACE = 4 * GB


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int  # negative: the signal that ended it
    seconds: float
    memory: int  # in bytes, at its peak
    stdout: str
    stderr: str
    hung: bool = False  # killed after the time that it may take


@dataclass(frozen=True)
class Child:
    """A command that is running."""

    pid: int
    pidfd: int
    started: float
    stdout: Path
    stderr: Path

    def send(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self.pidfd, number)

    def wait(self, seconds: float = SECONDS) -> Outcome:
        """Wait for the end of the command, and kill it after `seconds`."""
        remaining = self.started + seconds - time.monotonic()
        hung = not select.select([self.pidfd], [], [], max(remaining, 0.0))[0]
        if hung:
            os.killpg(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        os.close(self.pidfd)
        return Outcome(
            code=os.waitstatus_to_exitcode(status),
            seconds=time.monotonic() - self.started,
            memory=usage.ru_maxrss * 1024,
            stdout=self.stdout.read_text(encoding="utf-8", errors="replace"),
            stderr=self.stderr.read_text(encoding="utf-8", errors="replace"),
            hung=hung,
        )


def load() -> None:
    """Import everything that the commands use. Raises RuntimeError if that started a thread."""
    for name in MODULES:
        import_module(name)
    _draw_a_figure()
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError("the imports started a thread; set OMP_NUM_THREADS=1")
    gc.collect()
    gc.freeze()


def _draw_a_figure() -> None:
    """Load the fonts and what else matplotlib sets up when it first draws, a second of work."""
    from matplotlib.figure import Figure

    Figure().subplots().set_title("a title").figure.savefig(BytesIO())


def start(
    arguments: Sequence[object],
    folder: Path,
    output: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Start `crkd ARGUMENTS` in `folder`; `environment` adds variables to those of this process.

    What it prints goes to files whose names start `output`, by default `folder` itself with .out
    and .err.
    """
    output = output or folder
    stdout, stderr = Path(f"{output}.out"), Path(f"{output}.err")
    for path in (stdout, stderr):  # a signal may come before the child creates them
        path.write_bytes(b"")
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    pid = os.fork()
    if not pid:
        os.environ.update(environment or {})
        _run([str(argument) for argument in arguments], folder, stdout, stderr)
    return Child(pid, os.pidfd_open(pid), started, stdout, stderr)


def run(arguments: Sequence[object], folder: Path, seconds: float = SECONDS) -> Outcome:
    """Run `crkd ARGUMENTS` in `folder` to its end."""
    return start(arguments, folder).wait(seconds)


def _run(arguments: list[str], folder: Path, stdout: Path, stderr: Path) -> NoReturn:
    """Be the child: run the command as `python -m crkd_cli` does, and never return."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, path in ((1, stdout), (2, stderr)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGESIZE") + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        sys.argv = ["crkd", *arguments]
        sys.modules["__main__"] = ModuleType("__main__")  # which worker processes import
        code = _exit_code()
        _end_helpers()
    except KeyboardInterrupt:  # outside the command
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                code = code or 120  # as Python does
        os._exit(code)


def _end_helpers() -> None:
    """End the processes that the command started, so that their memory counts as its own."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # the thread has ended meanwhile
            for pid in map(int, (task / "children").read_text().split()):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _exit_code() -> int:
    from crkd_cli.cli import main

    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, int) or end.code is None:
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0
