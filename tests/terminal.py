"""Commands whose output goes to a terminal."""

import os
import subprocess
import sys


def in_terminal(stream: str, columns: int, *args: object) -> tuple[int, str]:
    """Run crkd with `stream` ("stdout" or "stderr") in a terminal: (exit code, what it shows)."""
    our_end, program_end = os.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "crkd_cli", *map(str, args)]
    stdout, stderr = (program_end if stream == name else None for name in ("stdout", "stderr"))
    with subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment) as process:
        os.close(program_end)
        output = b""
        try:
            while part := os.read(our_end, 65536):
                output += part
        except OSError:  # the other end is closed
            pass
        os.close(our_end)
    return process.returncode, output.decode()
