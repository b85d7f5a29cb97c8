"""Time commands of an older checkout and of this one in turn, from their start to their end.

    python -m benchmarks.commands OLD_CHECKOUT "predict scans --checkpoint la.pth" …

Runs them in the current folder and writes benchmarks/results/commands-MACHINE.json.
"""

import argparse
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, ROOT, environment, slug, write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="checkout to compare with")
    parser.add_argument("commands", nargs="+", help="without `crkd` and `--out`")
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    describe = ["git", "-C", args.old, "describe", "--always", "--exclude", "*"]
    old_commit = subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    rows = [compare(words, args.old.resolve(), args.pairs) for words in args.commands]
    record = environment() | {"old_commit": old_commit, "rows": rows}
    record["command"] = shlex.join(["python", "-m", "benchmarks.commands", *sys.argv[1:]])
    write_json(record, RESULTS / f"commands-{slug(record['machine'])}.json")


def compare(words: str, old: Path, pairs: int) -> dict[str, Any]:
    """Return the seconds [wall, CPU] of each run of `words`."""
    row: dict[str, Any] = {"work": f"crkd {words}", "threads": torch.get_num_threads()}
    row |= {"old_s": [], "new_s": []}
    for _ in range(pairs):
        for name, checkout in (("old_s", old), ("new_s", ROOT)):
            row[name].append(seconds(words.split(), checkout))
            print(f"{words}: {name} {row[name][-1]}", file=sys.stderr, flush=True)
    return row


def seconds(words: list[str], checkout: Path) -> list[float]:
    """Run a command of `checkout` that writes to a temporary folder; return wall and CPU time."""
    environ = os.environ | {"PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory(prefix="crkd-bench-") as folder:
        # -P: not the package in the current folder.
        command = [sys.executable, "-P", "-m", "crkd_cli", *words, "--out", folder]
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=environ)
        wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [round(wall, 1), round(cpu, 1)]


if __name__ == "__main__":
    main()
