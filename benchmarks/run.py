"""Times crkd beside the published way of working, on the same work in one process, and keeps the figures as JSON.

python -m benchmarks.run [--rows step-acdc,case] [--data-root DIR] [--out FILE]

With --rows, the rows of an existing file are replaced or added and the others kept.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.record import processor
from benchmarks.speed import cases, peers, starts, training
from benchmarks.speed.bound import bounds
from benchmarks.speed.compiled import compiled
from benchmarks.speed.inputs import Inputs, Sizes, synthetic
from benchmarks.speed.row import Row, read
from crkd_cli.errors import CrkdError
from crkd_cli.paths import atomic_write
from crkd_cli.runtime.device import pick_precision

ROWS: dict[str, Callable[[Inputs], Iterator[Row]]] = {
    "step-acdc": training.step_acdc,  # and the wait for data, its parts, and a smaller one with every pixel projected
    "step-published": training.step_published,
    "step-la": training.step_la,
    "case": cases.case,
    "metrics": cases.metrics,
    "start-help": starts.help_text,
    "start-train": starts.first_step,
    "grow-batch": training.grow_batch,
    "grow-image": training.grow_image,
    "grow-metrics": cases.grow_metrics,
    "grow-case": cases.grow_case,
    "grow-cases": starts.grow_cases,
    "augmentation": peers.augmentation,
    "compile": compiled,
}
UNUSUAL = (
    "step-published",
    "compile",
)  # which take 23 GB of memory, and minutes before the first figure
USUAL = [name for name in ROWS if name not in UNUSUAL]
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
PACKAGES = ("torch", "numpy", "scipy", "medpy", "monai", "torchio")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = f"default: all but {' and '.join(UNUSUAL)}"
    parser.add_argument(
        "--rows", default=",".join(USUAL), help=f"some of: {', '.join(ROWS)}; {usual}"
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        help="holds prepared/acdc and prepared/la; default: synthetic cases",
    )
    parser.add_argument(
        "--out", type=Path, help="default: benchmarks/results/speed-cpu-MACHINE.json"
    )
    given = parser.parse_args()
    names = given.rows.split(",")
    if unknown := set(names) - set(ROWS):
        parser.error(f"no row is called {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    command = " ".join(["python -m benchmarks.run", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="crkd-bench-") as folder:
        scratch = Path(folder)
        inputs = (
            Inputs(given.data_root, scratch, real=True) if given.data_root else synthetic(scratch)
        )
        try:
            record = measure(names, inputs, command)
        except CrkdError as error:  # a store that is missing, or Ctrl-C inside a training loop
            sys.exit(f"error: {error}")
    show(record)
    out = given.out or Path(__file__).parent / "results" / f"speed-cpu-{precision_name()}.json"
    if given.rows != parser.get_default("rows") and out.is_file():
        record = updated(json.loads(out.read_text(encoding="utf-8")), record)
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out}", file=sys.stderr)


def measure(names: list[str], inputs: Inputs, command: str, note: str = "") -> dict[str, Any]:
    """A speed file's content (benchmarks/speed/row.py) with the rows `names`."""
    begin = time.perf_counter()
    record = facts() | {"inputs": inputs.kind, "command": command, "note": note}
    rows: list[Row] = []
    for name in names:
        for row in ROWS[name](inputs):
            if inputs.sizes != Sizes():
                row.target = None  # targets are those of the published sizes
            rows.append(row)
            print(
                f"{time.perf_counter() - begin:5.0f} s  {row.work}: {'  '.join(row.cells())}",
                file=sys.stderr,
                flush=True,
            )
    cpu = torch.device("cpu")
    bound = bounds(inputs.sizes, pick_precision("auto", cpu), cpu)
    return record | {
        "seconds": round(time.perf_counter() - begin, 1),
        "bound": bound,
        "rows": [row.tree() for row in rows],
    }


def updated(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A whole run's record with the rows that a run of some rows measured later, and a note that says so."""
    later = {row["work"]: row for row in new["rows"]}
    rows = [later.pop(row["work"], row) for row in old["rows"]] + list(later.values())
    note = (
        f"Some rows were measured later: `{new['command']}`, commit {new['commit']}, {new['date']}."
    )
    return old | {"rows": rows, "note": f"{old['note']} {note}".strip()}


def facts() -> dict[str, Any]:
    """Machine, versions, commit: what the figures depend on."""
    device = torch.device("cpu")
    cpu = Path("/proc/cpuinfo")
    known = cpu.read_text(encoding="utf-8").split() if cpu.is_file() else []
    return {
        "device": "cpu",
        "machine": processor(),
        "flags": [flag for flag in FLAGS if flag in known],
        "precision": "bf16" if pick_precision("auto", device) == torch.bfloat16 else "fp32",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: installed(name) for name in PACKAGES},
        },
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "load": os.getloadavg()[0],
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """The checkout's commit, with a + if it has changes of its own."""
    root = Path(__file__).parents[1]
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def precision_name() -> str:
    """The processor in a file name: amd-epyc-2-cores."""
    return (
        "".join(c if c.isalnum() else "-" for c in processor().lower())
        .replace("--", "-")
        .strip("-")
    )


def show(record: dict[str, Any]) -> None:
    title = (
        f"{record['machine']}, {record['threads']} threads, {record['precision']}; baseline in fp32"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("work", overflow="fold")
    for column in ("baseline", "crkd", "ratio", "target", "met"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in map(read, record["rows"]):
        table.add_row(row.work, *row.cells())
    Console().print(table)


if __name__ == "__main__":
    main()
