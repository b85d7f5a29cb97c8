"""Start commands two or three times on the same names, and send them signals at random moments.

    OMP_NUM_THREADS=1 python -m tests.reliability.races --trials 20 --seed 0

Afterwards, whatever result exists must be complete. A plain run must then succeed, give the same
result as an undisturbed one, and leave nothing else.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.common import environment, write_json
from tests.reliability import commands, workspace
from tests.reliability.commands import Child, Outcome
from tests.reliability.trial import digest
from tests.reliability.workspace import Workspace, evaluate, predict, prepare, train

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP)
SECONDS = 60.0  # for several commands at once
STEPS = 12


@dataclass(frozen=True)
class Race:
    """A command, and how its result is found and checked."""

    arguments: Callable[[Workspace], list[object]]  # with outputs relative to the trial's folder
    # Returns a digest of each part of the result that exists, and fails if one is incomplete.
    result: Callable[[Path], dict[str, str]]
    partial: bool = False  # parts of the result are results too, such as masks
    inputs: Callable[[Workspace, Path], object] = lambda work, folder: None  # copied to the folder


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def _run_folder(folder: Path) -> dict[str, str]:
    """Return digests of the steps and weights of the checkpoints, which must be readable."""
    results = {}
    for name in ("last.pth", "best.pth"):
        if (folder / "run" / name).is_file():
            content = torch.load(folder / "run" / name, weights_only=True)
            weights = {key: value.tolist() for key, value in content["weights"].items()}
            results[name] = f"{content['step']} {hash(json.dumps(weights))}"
    return results


def _evaluation(folder: Path) -> dict[str, str]:
    """Return the files of an evaluation, which exists if it has a summary."""
    has_summary = (folder / "evaluation" / "summary.json").is_file()
    return _files(folder / "evaluation") if has_summary else {}


def _training(work: Workspace) -> list[object]:
    settings = (f"train.steps={STEPS}", "train.save_minutes=0")
    options = [word for setting in settings for word in ("--set", setting)]
    return train(work, Path("run"), *options)


RACES: dict[str, Race] = {
    "prepare-data": Race(
        lambda work: prepare(work.source(3), Path("data"), 3),
        lambda folder: _files(folder / "data" / "prepared" / "own3d"),
    ),
    "prepare-data --workers 2": Race(
        lambda work: [*prepare(work.source("ct"), Path("data"), "ct"), "--workers", 2],
        lambda folder: _files(folder / "data" / "prepared" / "ct"),
    ),
    "train": Race(_training, _run_folder),
    "evaluate": Race(
        lambda work: evaluate(Path("run/last.pth"), work.data, "--out", "evaluation"),
        _evaluation,
        inputs=lambda work, folder: shutil.copytree(work.run("a"), folder / "run"),
    ),
    "predict": Race(
        lambda work: predict(work.source(3) / "images", work.checkpoint(3), Path("masks")),
        lambda folder: _files(folder / "masks"),
        partial=True,
    ),
}


@dataclass
class Races:
    """Runs races, each trial from its own seed, and collects what must not happen."""

    work: Workspace
    seed: int
    faults: list[str] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)  # by command
    references: dict[str, tuple[dict[str, str], float]] = field(default_factory=dict)

    def trial(self, name: str, number: int) -> None:
        """Run one trial of the command `name`."""
        race = RACES[name]
        reference, duration = self._reference(name)
        draw = random.Random(f"{self.seed}/{name}/{number}")
        folder = self._folder(name, number)
        before = len(self.faults)
        where = f"--command {name} --seed {self.seed} --number {number}"
        if draw.random() < 0.5:  # the result is there already, and is replaced
            commands.run(race.arguments(self.work), folder, SECONDS)
        count = self.counts.setdefault(name, Counter())
        for outcome, sent in self._disturb(race, folder, draw, duration):
            self._judge(outcome, sent, where)
            count["started"] += 1
            count["stopped"] += sent is not None and outcome.code in (-sent, 128 + sent)
        try:
            result = race.result(folder)
            if not self._is_complete(result, reference, race):
                self.faults.append(f"half a result: {sorted(result)}; {where}")
        except Exception as error:
            self.faults.append(f"damaged result: {error!r}; {where}")
        self._run_plainly(race, folder, reference, where)
        count["trials"] += 1
        count["faults"] += len(self.faults) - before
        shutil.rmtree(folder)

    def rows(self) -> list[dict[str, object]]:
        """Return the counts of every command."""
        keys = ("trials", "started", "stopped", "faults")
        return [
            {"command": name, **{key: count[key] for key in keys}}
            for name, count in self.counts.items()
        ]

    def _disturb(
        self, race: Race, folder: Path, draw: random.Random, duration: float
    ) -> list[tuple[Outcome, signal.Signals | None]]:
        """Run the command several times at once, and send signals."""
        children: list[Child] = []
        plan: list[tuple[float, int, signal.Signals]] = []
        started = time.monotonic()
        for index in range(draw.choice((2, 2, 3))):
            time.sleep(draw.uniform(0, 0.5 * duration) if index else 0)
            output = folder.with_name(f"{folder.name}-{index}")
            children.append(commands.start(race.arguments(self.work), folder, output))
            if draw.random() < 0.7:
                moment = time.monotonic() - started + draw.uniform(0, 1.2 * duration)
                plan.append((moment, index, draw.choice(SIGNALS)))
        sent: dict[int, signal.Signals] = {}
        for moment, index, number in sorted(plan):
            time.sleep(max(started + moment - time.monotonic(), 0.0))
            children[index].send(number)
            sent[index] = number
        return [(child.wait(SECONDS), sent.get(index)) for index, child in enumerate(children)]

    def _judge(self, outcome: Outcome, sent: signal.Signals | None, where: str) -> None:
        allowed = {0, 1, 2} | ({-sent, 128 + sent} if sent else set())
        last = outcome.stderr.strip().splitlines()[-1:]
        if outcome.hung:
            self.faults.append(f"hang; {where}")
        elif outcome.code not in allowed:
            self.faults.append(f"exit code {outcome.code} {last}; {where}")
        elif "Traceback" in outcome.stderr:
            self.faults.append(f"traceback {last}; {where}")

    def _is_complete(self, result: dict[str, str], reference: dict[str, str], race: Race) -> bool:
        if race is RACES["train"]:
            return True  # checkpoints of earlier steps, which were read
        if race.partial:
            return result.items() <= reference.items()
        return result in ({}, reference)

    def _run_plainly(self, race: Race, folder: Path, reference: dict[str, str], where: str) -> None:
        outcome = commands.run(race.arguments(self.work), folder, SECONDS)
        if outcome.code:
            self.faults.append(f"the plain run fails: {outcome.stderr[-300:]}; {where}")
        elif race.result(folder) != reference:
            self.faults.append(f"the plain run gives another result; {where}")
        leftovers = [
            path
            for path in folder.rglob(".*")
            if path.name.startswith(".tmp-") or "lock" in path.name
        ]
        if leftovers:
            self.faults.append(f"leftovers: {', '.join(path.name for path in leftovers)}; {where}")

    def _reference(self, name: str) -> tuple[dict[str, str], float]:
        """Return the result of an undisturbed run, and the seconds that it takes."""
        if name not in self.references:
            folder = self._folder(name, -1)
            outcome = commands.run(RACES[name].arguments(self.work), folder, SECONDS)
            result = RACES[name].result(folder)
            if outcome.code or not result:
                raise RuntimeError(outcome.stderr)
            self.references[name] = result, outcome.seconds
        return self.references[name]

    def _folder(self, name: str, number: int) -> Path:
        folder = self.work.root / "races" / f"{name}{number}"
        folder.mkdir(parents=True)
        RACES[name].inputs(self.work, folder)
        return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Start commands at once, and send them signals.")
    parser.add_argument("--trials", type=int, default=20, help="of every command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", choices=list(RACES), help="only this one")
    parser.add_argument("--number", type=int, help="only this trial")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    commands.load()
    numbers = range(args.trials) if args.number is None else [args.number]
    with tempfile.TemporaryDirectory() as name:
        races = Races(workspace.make(Path(name) / "work"), args.seed)
        for command in [args.command] if args.command else list(RACES):
            for number in numbers:
                races.trial(command, number)
    for fault in races.faults:
        print(fault)
    command = f"python -m tests.reliability.races --trials {args.trials} --seed {args.seed}"
    figures = {"command": command, **environment(), "rows": races.rows()}
    print(json.dumps(figures, indent=1))
    if args.json:
        write_json(figures, args.json)
    sys.exit(bool(races.faults))


if __name__ == "__main__":
    main()
