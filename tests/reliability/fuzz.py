"""Damage inputs of every kind, run the commands on them, and count what must not happen.

    OMP_NUM_THREADS=1 python -m tests.reliability.fuzz --inputs 10000 --seed 0

Faults are printed with the command that repeats them; their inputs are kept (--keep).
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import environment, write_json
from tests.reliability import commands, readers, scans, targets, workspace
from tests.reliability.trial import Fault, Trial
from tests.reliability.workspace import Workspace

KEEP = Path(tempfile.gettempdir()) / "crkd-faults"


class Target(NamedTuple):
    """Something to damage."""

    run: targets.Target
    share: int  # of the trials
    what: str
    batch: int = 1  # inputs in a trial


TARGETS = {
    "pictures": Target(
        readers.pictures, 4, "pictures: PNG, JPG, TIFF, BMP, GIF, HDF5, DICOM", readers.BATCH
    ),
    "volumes": Target(
        readers.volumes, 4, "volumes: NIfTI, NRRD, MetaImage, TIFF, HDF5, DICOM", readers.BATCH
    ),
    "dicom": Target(scans.dicom, 3, "DICOM: folders of series, multi-frame files", scans.BATCH),
    "channels": Target(scans.channels, 2, "images of two channels: NIfTI, NRRD, HDF5", scans.BATCH),
    "label": Target(readers.damaged_label, 6, "label maps of these formats"),
    "description": Target(targets.description, 8, "`dataset.yaml`, `dataset.json`, `patients.csv`"),
    "names": Target(targets.names, 3, "names of files"),
    "archive": Target(targets.archive, 6, "archives: zip, tar, tar.gz"),
    "config": Target(targets.config, 8, "configurations"),
    "config-of-run": Target(targets.config_of_run, 2, "`config.yaml` of a run"),
    "overrides": Target(targets.overrides, 10, "values of `--set`"),
    "options": Target(targets.options, 10, "values of the other options"),
    "split": Target(targets.split, 6, "split files"),
    "stored-split": Target(targets.stored_split, 2, "splits that `make-splits` wrote"),
    "store-index": Target(targets.store_index, 8, "stores: `index.json`"),
    "store-arrays": Target(targets.store_arrays, 8, "stores: arrays"),
    "checkpoint-bytes": Target(targets.checkpoint_bytes, 8, "checkpoints: bytes"),
    "checkpoint-content": Target(targets.checkpoint_content, 8, "checkpoints: values"),
    "log": Target(targets.log, 6, "`log.jsonl` and `metrics.json`"),
    "results": Target(targets.results, 8, "evaluations: `summary.json`, `cases.csv`"),
}


@dataclass(frozen=True)
class Failure:
    """A fault, and how to repeat it."""

    target: str
    number: int
    fault: Fault


class Fuzzer:
    """Runs numbered trials, which depend on nothing but the seed, the target and the number."""

    def __init__(self, work: Workspace, seed: int, keep: Path) -> None:
        self.work, self.seed, self.keep = work, seed, keep
        self.inputs: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self._expected: dict[str, set[str | None]] = {name: set() for name in TARGETS}

    def trial(self, name: str, number: int) -> list[Failure]:
        """Run one trial; its folder is kept if it shows a fault."""
        started = time.monotonic()
        trial = self._new(name, number, intact=False)
        result = TARGETS[name].run(trial)
        if result is not None and result not in self._expected[name]:
            # The draws before the damage choose the commands, so they are made again.
            intact = self._new(name, number, intact=True)
            expected = TARGETS[name].run(intact)
            self._expected[name].add(expected)
            trial.faults += intact.faults
            if result != expected:
                trial.faults.append(Fault("silent", "accepted, but the result is another one"))
            shutil.rmtree(intact.folder)
        self.inputs[name] += trial.inputs
        self.seconds[name] += time.monotonic() - started
        if trial.faults:
            target = self.keep / f"{name}-{self.seed}-{number}"
            shutil.rmtree(target, ignore_errors=True)
            shutil.move(trial.folder, target)
            for suffix in (".out", ".err"):
                if (printed := Path(f"{trial.folder}{suffix}")).exists():
                    shutil.move(printed, target / f"last{suffix}")
        else:
            shutil.rmtree(trial.folder)
        return [Failure(name, number, fault) for fault in trial.faults]

    def _new(self, name: str, number: int, *, intact: bool) -> Trial:
        folder = self.work.root / "trials" / f"{name}-{number}{'-intact' if intact else ''}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        draw = random.Random(f"{self.seed}/{name}/{number}")
        return Trial(self.work, folder, draw, intact)


def schedule(inputs: int) -> Iterator[tuple[str, int]]:
    """Yield (target, number) until there are so many inputs, all targets in proportion."""
    done = 0
    numbers: Counter[str] = Counter()
    while True:
        for name, target in TARGETS.items():
            for _ in range(target.share):
                yield name, numbers[name]
                numbers[name] += 1
                done += target.batch
                if done >= inputs:
                    return


def main() -> None:
    parser = argparse.ArgumentParser(description="Damage inputs and run the commands on them.")
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=list(TARGETS), help="only this one")
    parser.add_argument("--number", type=int, help="only this trial of the target")
    parser.add_argument("--first", type=int, default=0, help="number of the target's first trial")
    parser.add_argument("--keep", type=Path, default=KEEP, help="folder for inputs with faults")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    commands.load()
    args.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = workspace.make(Path(name) / "work")
        fuzzer = Fuzzer(work, args.seed, args.keep.resolve())
        failures = []
        plan: Iterator[tuple[str, int]] = schedule(args.inputs)
        if args.target:
            numbers = range(args.first, args.first + args.inputs)
            plan = (
                (args.target, n) for n in ([args.number] if args.number is not None else numbers)
            )
        for target, number in plan:
            for failure in fuzzer.trial(target, number):
                failures.append(failure)
                print(
                    f"{failure.fault.kind}: {failure.fault.what}\n    --target {target} "
                    f"--seed {args.seed} --number {number}",
                    flush=True,
                )
    faults = Counter(failure.target for failure in failures)
    rows = [
        {"target": name, "what": TARGETS[name].what, "inputs": count, "faults": faults[name]}
        for name, count in fuzzer.inputs.items()
    ]
    command = f"python -m tests.reliability.fuzz --inputs {args.inputs} --seed {args.seed}"
    figures = {"command": command, **environment(), "rows": rows}
    print(json.dumps(figures, indent=1))
    print("seconds:", {name: round(seconds) for name, seconds in fuzzer.seconds.items()})
    if args.json:
        write_json(figures, args.json)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
