"""Keeps the evaluation of a run as one JSON file: what was run, where, and every case's scores.

python benchmarks/record.py runs/acdc-crkd-3/last.pth benchmarks/results/NAME.json --command "crkd train …" --commit HASH
"""

import argparse
import csv
import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from crkd_cli.engine.hardware import describe, pick_precision
from crkd_cli.paths import atomic

PACKAGES = ("torch", "numpy", "scipy", "medpy")


def processor() -> str:
    """The CPU's name and the number of threads torch uses on it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--command", required=True)
    parser.add_argument("--commit", required=True, help="of the code that trained")
    parser.add_argument("--evaluation", default="evaluation-strict-test")
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    run = given.checkpoint.parent
    summary = json.loads((run / given.evaluation / "summary.json").read_text(encoding="utf-8"))
    with (run / given.evaluation / "cases.csv").open(encoding="utf-8") as file:
        cases = [{key: value for key, value in row.items() if key != "protocol"} for row in csv.DictReader(file)]
    metrics = run / "metrics.json"
    trained = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record = {
        "command": given.command,
        "commit": given.commit,
        "machine": processor(),
        "device": trained.get("device") or describe(device, pick_precision("auto", device)),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "seed": summary["seed"],
        "seconds": trained.get("seconds"),
        "steps_per_second": trained.get("steps_per_second"),
        "note": given.note,
        "summary": {key: value for key, value in summary.items() if key != "published"},
        "cases": cases,
    }
    with atomic(given.out) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
