"""Damage inputs of every kind, run the commands on them, and count what must not happen.

    OMP_NUM_THREADS=1 python -m tests.reliability.fuzz --inputs 10000 --seed 0

Faults are printed with the command that repeats them; their inputs are kept in the folder --keep.
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

from tests.reliability import commands, readers, targets, workspace
from tests.reliability.trial import Fault, Trial
from tests.reliability.workspace import Workspace

# Targets with their share of the trials. A trial of `pictures` and `volumes` is a folder of inputs.
TARGETS: dict[str, tuple[targets.Target, int]] = {
    "pictures": (readers.pictures, 3),
    "volumes": (readers.volumes, 3),
    "label": (readers.damaged_label, 6),
    "config": (targets.config, 8),
    "overrides": (targets.overrides, 10),
    "options": (targets.options, 10),
    "split": (targets.split, 6),
    "stored-split": (targets.stored_split, 2),
    "checkpoint-bytes": (targets.checkpoint_bytes, 8),
    "checkpoint-content": (targets.checkpoint_content, 8),
    "store-index": (targets.store_index, 8),
    "store-arrays": (targets.store_arrays, 8),
    "log": (targets.log, 6),
    "results": (targets.results, 8),
    "config-of-run": (targets.config_of_run, 2),
    "description": (targets.description, 8),
    "archive": (targets.archive, 6),
    "names": (targets.names, 3),
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
        result = TARGETS[name][0](trial)
        if result is not None and result not in self._expected[name]:
            # The draws before the damage choose the commands, so they are made again.
            intact = self._new(name, number, intact=True)
            expected = TARGETS[name][0](intact)
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
        for name, (_, share) in TARGETS.items():
            for _ in range(share):
                yield name, numbers[name]
                numbers[name] += 1
                done += readers.BATCH if name in ("pictures", "volumes") else 1
                if done >= inputs:
                    return


def main() -> None:
    parser = argparse.ArgumentParser(description="Damage inputs and run the commands on them.")
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=list(TARGETS), help="only this one")
    parser.add_argument("--number", type=int, help="only this trial of the target")
    parser.add_argument("--first", type=int, default=0, help="number of the target's first trial")
    parser.add_argument("--keep", type=Path, default=Path("faults"), help="folder for the inputs")
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
    figures = {
        "inputs": dict(fuzzer.inputs),
        "seconds": {name: round(value, 1) for name, value in fuzzer.seconds.items()},
        "faults": Counter(f"{failure.target}: {failure.fault.kind}" for failure in failures),
    }
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
