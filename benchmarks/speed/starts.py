"""Rows of starting up, and of what grows with the number of cases."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.speed.inputs import Inputs, case_info, write_index
from benchmarks.speed.row import Row, alone
from benchmarks.speed.timing import Patience, clock, in_turn
from crkd_cli.data.make_splits import make_split
from crkd_cli.data.store import Store
from crkd_cli.metrics.summary import summarize

CRKD = [sys.executable, "-m", "crkd_cli"]


def help_text(inputs: Inputs) -> Iterator[Row]:
    def ask() -> None:
        subprocess.run([*CRKD, "--help"], check=True, stdout=subprocess.DEVNULL)

    row = Row("start-help", "target", "crkd --help", unit="s", target=0.4)
    sample = in_turn({"crkd": ask}, Patience(0.0, least=5))["crkd"]
    row.value, row.repeats = sample.median, len(sample.seconds)
    yield row


def first_step(inputs: Inputs) -> Iterator[Row]:
    """From the command to the first line of the run's log; the step itself is of two small patches and takes part of a second."""
    times = [
        clock(lambda number=number: _train(inputs, inputs.scratch / f"start-{number}"))
        for number in range(3)
    ]
    work = "crkd train on prepared LA, from the command to its first step"
    row = Row("start-train", "target", work, unit="s", target=8.0)
    row.value, row.repeats = float(np.median(times)), len(times)
    yield row


def _train(inputs: Inputs, out: Path) -> None:
    """Returns once the first step is logged; the run then ends by itself."""
    small = [
        "data.frame={patch: [48, 48, 48]}",
        "data.labeled_batch_size=1",
        "data.unlabeled_batch_size=1",
        "train.log_every=1",
        "train.steps=1",
    ]
    command = [
        *CRKD,
        "train",
        "--dataset",
        "la",
        "--labeled",
        inputs.labeled("la"),
        "--data-root",
        str(inputs.data_root),
    ]
    command += ["--out", str(out), *(part for one in small for part in ("--set", one))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        log = out / "log.jsonl"
        while not (log.is_file() and log.stat().st_size):
            if process.poll():
                raise subprocess.CalledProcessError(process.returncode, command)
            time.sleep(0.005)


def grow_cases(inputs: Inputs) -> Iterator[Row]:
    """Opening a store, dividing it and summarizing the scores of all its cases."""
    spec = inputs.store("la").spec
    for count in inputs.sizes.cases:
        folder = inputs.scratch / "many" / f"many{count}"
        folder.mkdir(parents=True)
        write_index(
            folder,
            spec,
            [case_info(f"case{number:04d}", (148, 141, 88)) for number in range(count)],
        )
        store = Store(folder)
        values = np.random.default_rng(0).random((count, 3))
        works = {
            "opening a store": lambda folder=folder: Store(folder),
            "summarizing 3 classes' scores": lambda values=values: summarize(values),
        }
        if count >= 10:  # fewer cannot be divided into train, val and test
            works["making a split"] = lambda store=store: make_split(store, "4", None, None, 0)
        for what, sample in in_turn(works, Patience(0.0, least=3)).items():
            yield alone(
                Row(f"grow-cases: {what}", "growth", f"{what}, {count} cases", size=count), sample
            )
