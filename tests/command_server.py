"""Run commands for a test, each in a fork of a process that has imported everything.

The server runs apart from the test, whose process has threads and other modules, and may have
another copy of the package, which PYTHONPATH names.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from tests.reliability import commands
from tests.reliability.commands import Outcome

CHECKOUT = Path(__file__).parents[1]


class CommandServer(AbstractContextManager["CommandServer"]):
    """Runs commands, one after the other, until the block ends."""

    def __init__(self, environment: Mapping[str, str], output: Path) -> None:
        """Start the server. What a command prints goes to two files whose names start `output`."""
        path = os.pathsep.join([environment["PYTHONPATH"], str(CHECKOUT)])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.command_server", str(output)],
            env={**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: Sequence[str], folder: Path, seconds: float) -> Outcome:
        """Run `crkd ARGUMENTS` in `folder`, and kill it after `seconds`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([arguments, str(folder), seconds]), file=self._process.stdin, flush=True)
        return Outcome(**json.loads(self._process.stdout.readline()))

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its stdin


def serve(output: Path) -> None:
    """Run the commands that stdin names, and print how each ended."""
    commands.load()
    for line in sys.stdin:
        arguments, folder, seconds = json.loads(line)
        outcome = commands.start(arguments, Path(folder), output).wait(seconds)
        print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
