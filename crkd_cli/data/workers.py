"""Call a function for every case, in several processes.

The processes are new interpreters without torch. Each works on one case at a time, and ends when
this process ends, even if this one is killed.
"""

import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from crkd_cli.data.cases import RawCase
from crkd_cli.data.raw.limits import available_memory
from crkd_cli.errors import CrkdError
from crkd_cli.progress import Progress

# Starting a process takes as long as reading files of this size at most.
BYTES_PER_WORKER = 1 << 25
# The memory that a process needs: itself, and a case that is decompressed and converted.
WORKER_BYTES, BYTES_PER_FILE_BYTE = 1 << 28, 20
SECONDS_TO_END = 10.0
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))


class HasId(Protocol):
    """A case, or what is known about it."""

    @property
    def id(self) -> str:
        """The id of the case."""


T = TypeVar("T", bound=HasId)
U = TypeVar("U")


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_workers(cases: Sequence[RawCase]) -> int:
    """Return how many processes read `cases` fastest: one per core, fewer for little data.

    There are also fewer if the memory is small for the largest case.
    """
    sizes = [sum(map(_size, case.image_files)) for case in cases]
    workers = min(available_cores(), sum(sizes) // BYTES_PER_WORKER)
    memory = available_memory()
    if memory is not None:
        needed = WORKER_BYTES + BYTES_PER_FILE_BYTE * max(sizes, default=0)
        workers = min(workers, memory // needed)
    return max(workers, 1)


def map_cases(
    function: Callable[[T], U],
    cases: Sequence[T],
    workers: int,
    progress: Progress,
    title: str,
) -> list[U]:
    """Return `function(case)` for every case.

    With one worker this process calls the function. Otherwise `workers` processes do: the function,
    the cases and the results are pickled, and what the function changes in its arguments is lost.
    An exception of the function is raised when its case is due, in the order of `cases`.

    Raises CrkdError, which names the case, if a process was killed.
    """
    results = []
    with (
        progress(title, len(cases), "cases") as advance,
        _iterate(function, cases, min(workers, len(cases))) as completed,
    ):
        for case, result in zip(cases, completed, strict=True):
            results.append(result)
            advance(1, note=case.id)
    return results


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # reported when it is read
        return 0


@contextmanager
def _iterate(function: Callable[[T], U], cases: Sequence[T], workers: int) -> Iterator[Iterator[U]]:
    if workers <= 1:
        yield map(function, cases)
        return
    pool = _Pool()
    try:
        pool.start(function, workers)
        yield pool.map(cases)
        pool.end()
    finally:
        pool.kill()


class _Pool:
    """Processes that wait for cases, each with a pipe of its own."""

    def __init__(self) -> None:
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []

    def start(self, function: Callable[[Any], Any], workers: int) -> None:
        context = get_context("spawn")
        with _signals_blocked(), _single_threaded():
            for _ in range(workers):
                pipe, end = context.Pipe()
                process = context.Process(target=_serve, args=(end, function))
                process.start()
                end.close()  # so that reading fails when the process has ended
                self._processes.append(process)
                self._pipes.append(pipe)

    def map(self, cases: Sequence[HasId]) -> Iterator[Any]:
        waiting = deque(range(len(cases)))
        running: dict[Connection, int] = {}
        answers: dict[int, tuple[bool, Any]] = {}
        for pipe in self._pipes:
            self._send_next(pipe, waiting, running, cases)
        for due in range(len(cases)):
            while due not in answers:
                for ready in wait(list(running)):
                    pipe = cast("Connection", ready)
                    number = running.pop(pipe)
                    answers[number] = self._receive(pipe, cases[number])
                    self._send_next(pipe, waiting, running, cases)
            succeeded, answer = answers.pop(due)
            if not succeeded:
                raise answer
            yield answer

    def end(self) -> None:
        """Let the processes end."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(SECONDS_TO_END)

    def kill(self) -> None:
        """End the processes at once, whatever they are doing."""
        for process in self._processes:
            process.kill()
            process.join()

    @staticmethod
    def _send_next(
        pipe: Connection,
        waiting: deque[int],
        running: dict[Connection, int],
        cases: Sequence[HasId],
    ) -> None:
        if not waiting:
            return
        number = waiting.popleft()
        running[pipe] = number
        with suppress(BrokenPipeError):  # the process was killed, which `_receive` reports
            pipe.send(cases[number])

    def _receive(self, pipe: Connection, case: HasId) -> tuple[bool, Any]:
        try:
            content = pipe.recv_bytes()
        except (EOFError, OSError):  # OSError: in the middle of an answer
            process = self._processes[self._pipes.index(pipe)]
            process.join()
            raise CrkdError(
                f"{case.id}: the process that read this case ended (exit code {process.exitcode}); "
                "if memory ran out, use --workers 1"
            ) from None
        answer: tuple[bool, Any] = pickle.loads(content)
        return answer


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Delay signals during the block; processes that are started in it do not receive them.

    So Ctrl-C, which a terminal sends to all processes, is handled by this one only.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # unblocks signals when it is started
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Let numerical libraries use one thread in processes that are started in the block."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """Answer with (succeeded, result or exception) until the pipe is closed."""
    with suppress(EOFError, ConnectionError):  # the other process has ended
        while True:
            pipe.send_bytes(_answer(function, pipe.recv()))


def _answer(function: Callable[[Any], Any], case: Any) -> bytes:
    try:
        return pickle.dumps((True, function(case)))
    except Exception as error:
        answer = pickle.dumps((False, error))
        try:
            pickle.loads(answer)
        except Exception:  # its class has another constructor
            answer = pickle.dumps((False, RuntimeError(repr(error))))
        return answer
