"""Call functions in a separate process, where a library may crash, hang or run out of memory.

The process is a new interpreter, started at the first call. It reads requests from a pipe, so it
ends when this process ends, even if this one is killed.
"""

import atexit
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np

from crkd_cli.data.raw.isolated import READY
from crkd_cli.errors import CrkdError

ROOT = Path(__file__).parents[3]  # contains the package
# Imports the same package as this process, even if another one is installed.
PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); import crkd_cli; del sys.path[0]; "
    "from crkd_cli.data.raw.isolated import serve; serve()"
)
BASE_SECONDS = 15.0
BYTES_PER_SECOND = 1e6  # the slowest reading that is waited for


class IsolatedProcessError(Exception):
    """The process ended instead of returning a result."""


def call_isolated(
    function: Callable[..., tuple[Any, ...]],
    path: Path,
    *args: Any,
    size: int | None = None,
    memory: int | None = None,
) -> Any:
    """Return `function(path, *args)`, called in the other process.

    The function is a public one of its module; further arguments and the items of the tuple that it
    returns are numbers, texts, None, lists of them, or (items) arrays. `size` is the number of
    bytes that it reads (default: those of `path`), which limits its time, and `memory` the number
    of bytes that it may use on Linux (default: all that are free).

    Raises CrkdError and MemoryError as the function does, ValueError for other exceptions,
    IsolatedProcessError if the process crashes or takes too long, and CrkdError if it cannot be
    started.
    """
    size = path.stat().st_size if size is None else size
    seconds = BASE_SECONDS + size / BYTES_PER_SECOND
    request = {
        "function": [function.__module__, function.__name__],
        "path": str(path),
        "args": args,
        "seconds": seconds,
        "memory": memory,
    }
    return _PROCESS.call(json.dumps(request).encode("ascii"), seconds)


class _Process:
    """The other process, started when needed and restarted after a crash."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._deadline = 0.0  # when the process ends itself

    def call(self, request: bytes, seconds: float) -> tuple[Any, ...]:
        with self._lock:
            try:
                answer = self._exchange(request, seconds)
            except BaseException:  # Ctrl-C too: else the next request gets a late answer
                self._stop()
                raise
        if "error" in answer:
            errors = {"CrkdError": CrkdError, "MemoryError": MemoryError}
            raise errors.get(answer["error"], ValueError)(answer["message"])
        return tuple(answer["result"])

    def close(self) -> None:
        """End the process, which reads to the end of its input."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._stop()

    def _exchange(self, request: bytes, seconds: float) -> dict[str, Any]:
        """Send a request and return the answer, with its arrays."""
        if self._process is None or self._process.poll() is not None:
            self._stop()
            self._process = _start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._deadline = time.monotonic() + seconds
        try:
            self._process.stdin.write(request + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise IsolatedProcessError(self._reason()) from None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise IsolatedProcessError(self._reason())
        answer: dict[str, Any] = json.loads(line)
        answer["result"] = [self._item(item) for item in answer.get("result", ())]
        return answer

    def _item(self, item: Any) -> Any:
        if not isinstance(item, dict):
            return item
        array = np.empty(item["shape"], item["dtype"])
        assert self._process is not None
        assert self._process.stdout is not None
        output = cast("BufferedReader", self._process.stdout)
        view = array.reshape(-1).view(np.uint8).data
        received = 0
        while received < len(view):
            count = output.readinto(view[received:])
            if not count:
                raise IsolatedProcessError(self._reason())
            received += count
        return array

    def _reason(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        is_late = time.monotonic() >= self._deadline
        return "reading it takes too long" if is_late else f"reading it crashes ({code})"

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):  # an unwritten request
                    stream.close()
        self._process = None


def _start() -> "subprocess.Popen[bytes]":
    # -P: files in the current folder are not imported.
    command = [sys.executable, "-P", "-c", PROGRAM, str(ROOT)]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise CrkdError(f"cannot start a process that reads files: {error}") from None
    assert process.stdout is not None
    if process.stdout.readline() != READY:
        process.communicate()
        raise CrkdError(f"cannot start a process that reads files: {sys.executable} fails")
    return process


_PROCESS = _Process()
atexit.register(_PROCESS.close)
