"""Trains and scores one run after another within a time budget, and keeps a record of every score."""

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import record
from benchmarks.gpu.pack import CHECKOUT, commit
from benchmarks.gpu.plan import Score, Trial
from crkd_cli.cli.console import info, progress
from crkd_cli.config import Config, load_config
from crkd_cli.errors import CrkdError
from crkd_cli.evaluation.evaluate import evaluate
from crkd_cli.paths import atomic_write, packaged_folder

STOPPED = 128 + signal.SIGTERM  # `crkd train`, ended by the signal with everything saved
GRACE = 45.0  # seconds that it may take for that


class TimeUp(Exception):
    """The budget is spent. What was begun goes on with the next call."""


class Worker:
    """`steps` and `sets` change every run, to try things out; `deadline` is a time.monotonic().

    `stop_after`: the step at which every run stops, on the schedule of its full length; None: the last one.
    """

    def __init__(
        self, kit: Path, deadline: float, steps: int | None, stop_after: int | None, sets: list[str]
    ) -> None:
        self.data, self.work = kit / "data", kit / "work"
        self.deadline, self.steps, self.stop_after = deadline, steps, stop_after
        self.sets = [*sets, *([] if steps is None else [f"train.steps={steps}"])]

    def name(self, trial: Trial) -> str:
        length = [] if self.steps is None else [f"{self.steps}steps"]
        stop = [] if self.stop_after is None else [f"to{self.stop_after}"]
        return "-".join([trial.name, *length, *stop])

    def run(self, trial: Trial) -> None:
        """Trains and scores what is not there yet. A run that fails is recorded, and not tried again. Raises TimeUp."""
        if self._failure(trial).is_file():
            return
        words = ["--dataset", trial.dataset, "--labeled", trial.labeled, "--method", trial.method]
        words = [
            "train",
            *words,
            *(word for one in [*trial.sets, *self.sets] for word in ("--set", one)),
        ]
        words += [] if self.stop_after is None else ["--stop-after", str(self.stop_after)]
        try:
            self._train(trial, words)
            for score in trial.scores:
                self._score(trial, score, words)
        except CrkdError as error:
            facts = {
                "dataset": trial.dataset,
                "method": trial.method,
                "labeled": int(trial.labeled.rstrip("%")),
            }
            what = str(error).replace(f"{CHECKOUT}/", "")
            record.write(
                {**self._facts(trial, words), "failure": what, "summary": facts},
                self._failure(trial),
            )

    def results(self, trials: list[Trial]) -> dict[str, Any]:
        """Mean Dice in percent by record, and what failed."""
        dice, failed = {}, {}
        for trial in trials:
            for score in trial.scores:
                if (file := self._record(trial, score)).is_file():
                    tree = json.loads(file.read_text(encoding="utf-8"))
                    dice[file.stem] = round(100 * tree["summary"]["mean"]["dice"]["mean"], 2)
            if (file := self._failure(trial)).is_file():
                failed[self.name(trial)] = json.loads(file.read_text(encoding="utf-8"))["failure"]
        return {"dice": dice, "failed": failed}

    def _folder(self, trial: Trial) -> Path:
        return self.work / "runs" / self.name(trial)

    def _failure(self, trial: Trial) -> Path:
        return self.work / "records" / f"{self.name(trial)}-failed.json"

    def _record(self, trial: Trial, score: Score) -> Path:
        checkpoint, protocol, part = score
        return (
            self.work
            / "records"
            / f"{self.name(trial)}-{checkpoint}-{protocol}-{part or 'published'}.json"
        )

    def _train(self, trial: Trial, words: list[str]) -> None:
        """Runs `crkd train` until it ends or the time is up. Raises CrkdError with its last words if it fails."""
        folder = self._folder(trial)
        if (folder / "metrics.json").is_file():  # written when the run has ended
            return
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "crkd_cli",
            *words,
            "--data-root",
            str(self.data),
            "--out",
            str(folder),
        ]
        begin = time.monotonic()
        with (folder / "train.log").open("a", encoding="utf-8") as log:
            child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                code = child.wait(self._left())
            except subprocess.TimeoutExpired:
                child.terminate()
                code = child.wait(GRACE)
            finally:
                child.kill()  # nothing is left to kill, but where waiting was cut short
        parts = [*_parts(folder), round(time.monotonic() - begin, 1)]
        with atomic_write(folder / "parts.json") as temporary:
            temporary.write_text(json.dumps(parts), encoding="utf-8")
        if (
            code == STOPPED or child.returncode == -signal.SIGTERM
        ):  # the latter: before its loop began
            raise TimeUp
        if code:
            lines = (folder / "train.log").read_text(encoding="utf-8").splitlines() or [""]
            raise CrkdError(f"crkd train ended with code {code}: {lines[-1]}")

    def _score(self, trial: Trial, score: Score, words: list[str]) -> None:
        file = self._record(trial, score)
        if file.is_file():
            return
        checkpoint, protocol, part = score
        folder = self._folder(trial)
        out = folder / file.stem
        with self._alarm():
            evaluate(folder / f"{checkpoint}.pth", self.data, info, progress, part, protocol, out)
        record.write({**self._facts(trial, words), **record.scores(out)}, file)

    def _facts(self, trial: Trial, words: list[str]) -> dict[str, Any]:
        """What the records of a run have in common."""
        folder = self._folder(trial)
        usual = packaged_folder("configs") / f"{trial.dataset}.yaml"
        config: Config = load_config(usual, [*trial.sets, *self.sets, f"method={trial.method}"])
        metrics = folder / "metrics.json"
        trained = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {}
        parts = _parts(folder)
        return {
            **record.circumstances(
                f"crkd {shlex.join(words)}", commit(), config, trained.get("device")
            ),
            "seconds": round(sum(parts), 1),
            "steps_per_second": trained.get("steps_per_second"),
            "steps": trained.get("steps", config.train.steps),
            "validation": record.validation(folder),
            "note": f"trained in {len(parts)} parts, resumed in between" if len(parts) > 1 else "",
        }

    def _left(self) -> float:
        """Seconds left. Raises TimeUp where none are."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeUp
        return left

    @contextmanager
    def _alarm(self) -> Iterator[None]:
        """Raises TimeUp in the block when the time is up."""

        def ring(number: int, frame: FrameType | None) -> None:
            raise TimeUp

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, self._left())
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _parts(folder: Path) -> list[float]:
    """Wall seconds of every call of `crkd train` for this run."""
    file = folder / "parts.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
