"""Standard streams whose failure does not end a command: full disk, closed terminal or pipe."""

import io
import os
import select
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Output(io.RawIOBase):
    """A file descriptor whose write errors are kept in `error` instead of raised."""

    def __init__(self, descriptor: int, is_closed: bool) -> None:
        self.error: OSError | None = None
        self._descriptor = descriptor
        self._is_closed = is_closed

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: "ReadableBuffer") -> int:
        try:
            return self._write(data)
        except OSError as error:
            self.error = error
            return memoryview(data).nbytes

    def _write(self, data: "ReadableBuffer") -> int:
        if self._is_closed:
            raise OSError("it is closed")
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # a pipe that another program made non-blocking is full
                select.select([], [self._descriptor], [])


def protect_streams() -> None:
    """Make stdout and stderr accept all output, even if it cannot be written.

    Characters that their encoding lacks are escaped. Standard streams that are closed are
    opened as the null device: otherwise, the next file to be opened would take their number, and
    messages of libraries would be written into it.
    """
    closed = [descriptor for descriptor in range(3) if _open_if_closed(descriptor)]
    sys.stdout = _protected(sys.stdout, 1, 1 in closed)
    sys.stderr = _protected(sys.stderr, 2, 2 in closed)


def final_exit_code(code: int) -> int:
    """Flush stdout; return `code`, or 1 for a success whose result could not be written there."""
    sys.stdout.flush()
    raw: Any = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = raw.error if isinstance(raw, _Output) else None
    if error is None or code:
        return code
    if not isinstance(error, BrokenPipeError):  # the reader stops early, as `head` does
        reason = error.strerror or error
        print(f"error: cannot write to stdout: {reason}", file=sys.stderr, flush=True)
    return 1


def _open_if_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        # The lowest free number, which is `descriptor` because those below it are open.
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        return True
    return False


def _protected(stream: TextIO | None, descriptor: int, is_closed: bool) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(descriptor, is_closed)),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == 2 or os.isatty(descriptor),
    )
