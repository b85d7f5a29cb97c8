"""The process in which `isolation` calls functions."""

import faulthandler
import json
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np

from crkd_cli.data.raw.limits import available_memory
from crkd_cli.errors import CrkdError

READY = b"ready\n"  # the first line of the output


def serve() -> None:
    """Answer requests until the input ends: a line of JSON, then the bytes of the arrays."""
    for name in ("SIGINT", "SIGHUP"):  # the calling process handles them; Windows lacks SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries is not an answer
    output.write(READY)
    output.flush()
    with Path(os.devnull).open("w") as nowhere:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            _limit_memory(request["memory"])
            # Ends this process even if a library does not return.
            faulthandler.dump_traceback_later(request["seconds"], exit=True, file=nowhere)
            answer, arrays = _answer(request)
            faulthandler.cancel_dump_traceback_later()
            if not _write(output, answer, arrays):
                return


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    try:
        module, name = request["function"]
        function = getattr(import_module(module), name)
        result = function(Path(request["path"]), *request["args"])
    except (CrkdError, MemoryError) as error:
        kind = "CrkdError" if isinstance(error, CrkdError) else "MemoryError"
        return {"error": kind, "message": str(error)}, []
    except Exception as error:
        return {"error": "ValueError", "message": str(error) or type(error).__name__}, []
    items = []
    arrays = []
    for item in result:
        if isinstance(item, np.ndarray):
            arrays.append(np.ascontiguousarray(item))
            items.append({"dtype": item.dtype.str, "shape": item.shape})
        else:
            items.append(item)
    return {"result": items}, arrays


def _write(output: IO[bytes], answer: dict[str, Any], arrays: list[Any]) -> bool:
    """Write an answer; return False if the calling process has ended."""
    try:
        output.write(json.dumps(answer).encode("ascii") + b"\n")
        for array in arrays:
            output.write(memoryview(array.reshape(-1).view(np.uint8)))
        output.flush()
    except BrokenPipeError:
        return False
    return True


def _limit_memory(needed: int | None) -> None:
    """Limit this process to the memory that is needed, or free; more is an error (Linux only)."""
    limits = [limit for limit in (available_memory(), needed) if limit is not None]
    statistics = Path("/proc/self/statm")
    if not limits or not statistics.exists():
        return
    import resource

    used = int(statistics.read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(ValueError, OSError):  # the limit is below what is used, or above `hard`
        resource.setrlimit(resource.RLIMIT_AS, (used + min(limits), hard))
