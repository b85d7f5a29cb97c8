"""Two processes of one run: started by torchrun, or faster, with the variables that it sets."""

import os
import subprocess
import sys
import time
from pathlib import Path

from torch.distributed import TCPStore

from tests.command_server import CommandServer
from tests.reliability.commands import Outcome
from tests.training.helpers import CHECKOUT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


class Processes:
    """`python -m torch.distributed.run --nproc_per_node=2 …`; `folder` gets the output."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder = folder
        self.launcher_stderr = ""
        launcher = (
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            "--redirects=3",
            f"--log-dir={folder}",
        )
        self.launcher = subprocess.Popen(
            [sys.executable, *launcher, *map(str, arguments)],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> int:
        """Return the exit code once all processes have ended."""
        _, self.launcher_stderr = self.launcher.communicate(timeout=120)
        return self.launcher.returncode

    def output(self, rank: int, stream: str = "stderr") -> str:
        [file] = self.folder.rglob(f"{rank}/{stream}.log")
        return file.read_text()

    def stderr(self) -> str:
        """What both processes wrote."""
        return self.output(0) + self.output(1)

    def errors(self) -> list[str]:
        """The lines of both processes that begin with "error: "; no process shows a traceback."""
        text = self.stderr()
        assert "Traceback" not in text, text
        return [line for line in text.splitlines() if line.startswith("error: ")]

    def pid(self, rank: int) -> int:
        parent = self.launcher.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        [pid] = [int(child) for child in children if _is_rank(child, rank)]
        return pid


def run_two(crkd: CommandServer, folder: Path, *arguments: object) -> list[Outcome]:
    """Run `crkd ARGUMENTS` in `folder` as two processes, to their end; return how each ended.

    Neither may show a traceback. As with torchrun, the store through which they talk outlives both:
    it is in this process.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    joint = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    ranks = [
        crkd.start(arguments, folder, RANK=rank, LOCAL_RANK=rank, **joint) for rank in ("0", "1")
    ]
    outcomes = [rank.wait() for rank in ranks]
    assert not any("Traceback" in outcome.stderr for outcome in outcomes), outcomes
    return outcomes


def launch_crkd(folder: Path, *arguments: object) -> Processes:
    return Processes(folder, "-m", "crkd_cli", *arguments)


def wait_for_steps(folder: Path, count: int) -> None:
    """Wait until the log of a run has `count` lines."""
    file = folder / "log.jsonl"
    deadline = time.monotonic() + 60
    while not file.is_file() or len(file.read_text().splitlines()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_rank(pid: str, rank: int) -> bool:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return f"RANK={rank}".encode() in environment
