"""One step of the GPU work: unpacks what was carried, trains and scores until it is done or the time is up, and says so.

The last line of stdout is one JSON object. The same command again goes on: runs and records are kept in build/gpu/work.
"""

import argparse
import json
import os
import re
import sys
import tarfile
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.gpu import smoke
from benchmarks.gpu.pack import CHECKOUT, commit
from benchmarks.gpu.plan import trials
from benchmarks.gpu.trial import TimeUp, Worker
from benchmarks.gpu.unpack import check, unpack
from crkd_cli.errors import CrkdError, UsageError, did_you_mean
from crkd_cli.paths import atomic_write

KIT = CHECKOUT / "build" / "gpu"
BUDGET = (
    490.0  # seconds; with what a started step or score needs to end, a call stays below 9 minutes
)


def main() -> None:
    begin = time.monotonic()
    steps = ["unpack", "smoke", "speed", *trials()]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", help=", ".join(steps))
    parser.add_argument("--steps", type=int, help="length of every run, to try the step out")
    parser.add_argument(
        "--stop-after",
        type=int,
        help="step at which every run stops, on the schedule of its full length",
    )
    parser.add_argument(
        "--set",
        dest="sets",
        action="append",
        default=[],
        help="KEY=VALUE for every run, to try the step out",
    )
    parser.add_argument(
        "--only", help="the runs of this method alone, so that two can share the GPU"
    )
    parser.add_argument(
        "--synthetic",
        action="store_true",
        help="speed on made-up cases of the same size: nothing is carried",
    )
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT", "out")),
        help="default: $OUT, else out",
    )
    given = parser.parse_args()
    answer: dict[str, Any] = {"step": given.step}
    code = 0
    try:
        if given.step not in steps:
            raise UsageError(f"no step is called {given.step!r}; {did_you_mean(given.step, steps)}")
        answer["unpacked"] = unpack(KIT, KIT / "data" / "prepared")
        if given.step == "smoke":
            answer |= look(given.out)
        elif given.step == "speed":
            answer |= speed(given.out, given.synthetic)
        elif given.step != "unpack":
            answer |= train(
                given.step,
                given.only,
                Worker(KIT, begin + given.budget, given.steps, given.stop_after, given.sets),
            )
    except CrkdError as error:
        answer["error"] = str(error)
        code = error.exit_code
    collect(given.out)
    print(json.dumps({**answer, "seconds": round(time.monotonic() - begin, 1)}))
    sys.exit(code)


def train(step: str, only: str | None, worker: Worker) -> dict[str, Any]:
    """Every run of `step`, or those of method `only`, as far as the time goes."""
    todo = [trial for trial in trials()[step] if only in (None, trial.method)]
    for dataset in {trial.dataset for trial in todo}:
        check(KIT / "data" / "prepared" / dataset)
    left = [worker.name(trial) for trial in todo]
    try:
        for trial in todo:
            worker.run(trial)
            left.pop(0)
    except TimeUp:
        pass
    return {"done": not left, "left": left, **worker.results(todo)}


def look(out: Path) -> dict[str, Any]:
    """Writes smoke-DEVICE.json: the tests' last line, losses and peak memory of every method's step."""
    facts = {
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "torch": version("torch"),
        "note": "",
    }
    seen = {"command": "benchmarks/gpu/run.sh smoke", **facts, **smoke.run()}
    record.write(seen, out / f"smoke-{_file_name(seen['device'])}.json")
    return seen


def speed(out: Path, made_up: bool) -> dict[str, Any]:
    """Writes speed-DEVICE.json, anew with every row, and gives each row's ratio, or its value."""
    from benchmarks.gpu.speed import measure  # loads the baseline
    from benchmarks.speed.inputs import Inputs, synthetic

    command = "benchmarks/gpu/run.sh speed" + (" --synthetic" if made_up else "")
    speeds: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if not made_up:
            for dataset in ("acdc", "la"):
                check(KIT / "data" / "prepared" / dataset)
        for speeds in measure(
            synthetic(scratch) if made_up else Inputs(KIT / "data", scratch, real=True), command
        ):
            record.write(speeds, out / f"speed-{_file_name(speeds['machine'])}.json")
            print(json.dumps(speeds["rows"][-1]), file=sys.stderr)
    rows = {
        row["name"]: {key: row[key] for key in ("ratio", "value", "met")} for row in speeds["rows"]
    }
    return {"done": True, "machine": speeds["machine"], "rows": rows}


def _file_name(device: str) -> str:
    """`NVIDIA H200, bf16` → nvidia-h200."""
    return "-".join(re.findall(r"[a-z0-9]+", device.partition(",")[0].lower()))


def collect(out: Path) -> None:
    """All records so far as one file, because few files come back from a borrowed machine."""
    work = KIT / "work"
    files = sorted([*work.glob("records/*.json"), *work.glob("runs/*/log.jsonl")])
    if files:
        with (
            atomic_write(out / "results.tar.gz") as temporary,
            tarfile.open(temporary, "w:gz") as tar,
        ):
            for file in files:
                tar.add(file, file.relative_to(work).as_posix())


if __name__ == "__main__":
    main()
