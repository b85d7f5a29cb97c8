"""Run commands for a test, each in a fork of a process that has imported everything.

The server runs apart from the test, whose process has threads and other modules, and may have
another copy of the package, which PYTHONPATH names.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.reliability import commands
from tests.reliability.commands import Child, Outcome

CHECKOUT = Path(__file__).parents[1]
SECONDS = 300.0  # that a command may take


class CommandServer(AbstractContextManager["CommandServer"]):
    """Runs commands until the block ends.

    Args:
        environment: their variables.
        output: a name; what a command prints goes to two files whose names begin so.
    """

    def __init__(self, environment: Mapping[str, str], output: Path) -> None:
        path = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(CHECKOUT)]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.command_server", str(output)],
            env={**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, arguments: Sequence[object], folder: Path, **environment: str) -> "Command":
        """Start `crkd ARGUMENTS` in `folder`, with these variables besides those of the server."""
        words = [str(argument) for argument in arguments]
        return Command(self, self.ask("start", words, str(folder), environment))

    def run(self, arguments: Sequence[object], folder: Path, seconds: float = SECONDS) -> Outcome:
        """Run `crkd ARGUMENTS` in `folder` to its end, and kill it after `seconds`."""
        return self.start(arguments, folder).wait(seconds)

    def ask(self, *request: Any) -> Any:
        """Return the server's answer to a request; see `serve`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its stdin


class Command:
    """A command that is running."""

    def __init__(self, server: CommandServer, pid: int) -> None:
        self._server = server
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def ended(self) -> bool:
        return bool(select.select([self._pidfd], [], [], 0)[0])

    def send(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    def wait(self, seconds: float = SECONDS) -> Outcome:
        """Wait for the end of the command, and kill it `seconds` after its start."""
        os.close(self._pidfd)
        return Outcome(**self._server.ask("wait", self.pid, seconds))


def serve(output: Path) -> None:
    """Answer requests on stdin: start a command (its process ID), wait for it (its outcome)."""
    commands.load()
    children: dict[int, Child] = {}
    for number, line in enumerate(sys.stdin):
        request, *details = json.loads(line)
        answer: Any
        if request == "start":
            arguments, folder, environment = details
            files = Path(f"{output}-{number}")
            child = commands.start(arguments, Path(folder), files, environment)
            children[child.pid] = child
            answer = child.pid
        else:
            pid, seconds = details
            answer = asdict(children.pop(pid).wait(seconds))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
