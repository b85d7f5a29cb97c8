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
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.gpu import smoke
from benchmarks.gpu.pack import CHECKOUT
from benchmarks.gpu.plan import trials
from benchmarks.gpu.trial import TimeUp, Worker
from benchmarks.gpu.unpack import check, unpack
from crkd_cli.errors import CrkdError, UsageError, did_you_mean
from crkd_cli.paths import atomic

KIT = CHECKOUT / "build" / "gpu"
BUDGET = 490.0    # seconds; with what a started step or score needs to end, a call stays below 9 minutes


def main() -> None:
    begin = time.monotonic()
    steps = ["unpack", "smoke", "speed", *trials()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", help=", ".join(steps))
    parser.add_argument("--steps", type=int, help="length of every run, to try the step out")
    parser.add_argument("--set", dest="sets", action="append", default=[], help="KEY=VALUE for every run, to try the step out")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")), help="default: $OUT, else out")
    given = parser.parse_args()
    answer: dict[str, Any] = {"step": given.step}
    code = 0
    try:
        if given.step not in steps:
            raise UsageError(f"no step is called {given.step!r}; {did_you_mean(given.step, steps)}")
        answer["unpacked"] = unpack(KIT, KIT / "data" / "prepared")
        if given.step == "smoke":
            answer |= smoke.run()
        elif given.step == "speed":
            answer |= speed(given.out)
        elif given.step != "unpack":
            answer |= train(given.step, Worker(KIT, begin + given.budget, given.steps, given.sets))
    except CrkdError as error:
        answer["error"] = str(error)
        code = error.exit_code
    collect(given.out)
    print(json.dumps({**answer, "seconds": round(time.monotonic() - begin, 1)}))
    sys.exit(code)


def train(step: str, worker: Worker) -> dict[str, Any]:
    """Every run of `step`, as far as the time goes."""
    todo = trials()[step]
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


def speed(out: Path) -> dict[str, Any]:
    """Writes speed-DEVICE.json, and gives each row's ratio, or its value."""
    from benchmarks.gpu.speed import measure  # loads the baseline
    from benchmarks.speed.inputs import Inputs

    for dataset in ("acdc", "la"):
        check(KIT / "data" / "prepared" / dataset)
    with tempfile.TemporaryDirectory() as scratch:
        speeds = measure(Inputs(KIT / "data", Path(scratch), real=True), "benchmarks/gpu/run.sh speed")
    name = "-".join(re.findall(r"[a-z0-9]+", speeds["machine"].lower()))
    record.write(speeds, out / f"speed-{name}.json")
    rows = {row["name"]: {key: row[key] for key in ("ratio", "value", "met")} for row in speeds["rows"]}
    return {"done": True, "machine": speeds["machine"], "rows": rows}


def collect(out: Path) -> None:
    """All records so far as one file, because few files come back from a borrowed machine."""
    work = KIT / "work"
    files = sorted([*work.glob("records/*.json"), *work.glob("runs/*/log.jsonl")])
    if files:
        with atomic(out / "results.tar.gz") as temporary, tarfile.open(temporary, "w:gz") as tar:
            for file in files:
                tar.add(file, file.relative_to(work).as_posix())


if __name__ == "__main__":
    main()
