"""Check, time, train and score on a GPU machine that has no network and is lent for minutes.

Beforehand, in a checkout with its environment and the prepared datasets:

    python -m benchmarks.gpu pack acdc                  # build/gpu/acdc-1of1.tar.xz, 52 MiB
    python -m benchmarks.gpu pack la --parts 3          # 43 MiB each
    pip install --target build/gpu/site --no-deps --only-binary :all: --python-version 3.12 msgspec
    cp -r .venv/lib/python3*/site-packages/medpy build/gpu/site

Each call carries the checkout, build/gpu/site and at most one part of a dataset, 64 MiB in all, and
`unpack` restores what was carried. The machine has the other packages that training and evaluation
import. A call runs one of these steps:

    export PYTHONPATH=$PWD:$PWD/build/gpu/site CRKD_COMMIT=0123abc    # the commit that is carried
    python3 -m benchmarks.gpu check                     # all methods beside the CPU, or those named
    python3 -m pytest -q -m gpu $(grep -rl --include=*.py mark.gpu tests)
    python3 -m benchmarks.gpu speed                     # time, memory and kernels of a step
    python3 -m benchmarks.gpu unpack && python3 -m benchmarks.gpu train
    python3 -m benchmarks.gpu train "--dataset la --labeled 4" "--dataset la --labeled 8"

Each takes at most --seconds (default: 540) and writes to $OUT. `train` runs `crkd train` with these
options side by side, by default the next two of PLANNED. It stops them with --reserve seconds left
(default: 90) to score and pack, and ends with the Dice of each run and the next command. The same
command resumes the runs: to train on at once, give the first call --reserve 20, which leaves no
time to score. With --keep-optimizer last.pth comes back, too, if it fits.

Here, or on another machine with these files carried to FOLDER, this puts them into runs/gpu/NAME:

    python -m benchmarks.gpu join FOLDER                # weights.pth to evaluate, last.pth
    cp runs/gpu/*/*-strict.json runs/gpu/*/*-paper.json benchmarks/results
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from benchmarks.common import RESULTS, environment, read_json, slug, write_json
from benchmarks.gpu_speed import training_steps
from benchmarks.gpu_transfer import QUANTIZED, RUNS, bring_back, join, pack, unpack
from benchmarks.inputs import Inputs, Sizes, synthetic
from benchmarks.record import make_record
from benchmarks.speed import measure
from crkd_cli.errors import CrkdError
from crkd_cli.methods import METHODS
from crkd_cli.runtime.device import describe, pick_device, pick_precision
from crkd_cli.training.loop import train

Process = subprocess.Popen[bytes]
ON_CPU = ("train.device=cpu", "train.precision=fp32")
# Devices draw dropout differently, and rounding decides which pixels pass a threshold.
NEAR = 0.2
SMALL = Sizes((4, 64, 64), (64, 64, 32), (64, 64), 4, (48, 48, 16), (24, 24, 8), 2)
PLANNED = (
    "--dataset acdc --labeled 3 --method crkd",
    "--dataset acdc --labeled 3 --method supervised",
    "--dataset la --labeled 4 --method crkd",
    "--dataset la --labeled 4 --method supervised",
    "--dataset acdc --labeled 3 --method unimatch",
    "--dataset acdc --labeled 7 --method crkd",
    "--dataset la --labeled 8 --method crkd",
)
WHICH, PROTOCOLS = ("last", "best"), ("strict", "paper")
PACKING, SCORING = 15, 25  # seconds kept for packing; left without which scoring does not begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = ("pack", "unpack", "check", "speed", "train", "join")
    parser.add_argument("step", choices=steps)
    parser.add_argument("names", nargs="*", help="datasets, methods, options of runs, or a folder")
    parser.add_argument("--parts", type=int, default=1, help="files to pack a dataset in")
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--reserve", type=float, default=90.0)
    parser.add_argument("--keep-optimizer", action="store_true")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
    args = parser.parse_intermixed_args()
    prepared = args.data_root / "prepared"
    functions: dict[str, Callable[[], object]] = {
        "pack": lambda: [pack(prepared / name, args.parts) for name in args.names],
        "unpack": lambda: unpack(prepared),
        "check": lambda: check(args.out, args.seconds, args.names or METHODS.names()),
        "speed": lambda: speed(args.out, args.seconds, Sizes()),
        "train": lambda: train_runs(args),
        "join": lambda: [join(Path(name)) for name in args.names],
    }
    try:
        functions[args.step]()
    except CrkdError as error:
        sys.exit(f"error: {error}")


def check(out: Path, seconds: float, methods: Sequence[str], steps: int = 3) -> None:
    """Compare a few steps of `methods` with the CPU; on a GPU, measure the memory, too.

    Raises CrkdError if a loss is not finite or is far from that on the CPU, or time was short.
    """
    deadline = time.monotonic() + seconds
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as small, tempfile.TemporaryDirectory() as large:
        inputs, published = synthetic(Path(small), SMALL), synthetic(Path(large))
        work = list(product(("acdc", "la"), methods))
        for dataset, method in work:
            if time.monotonic() > deadline:
                break
            cpu = _losses(inputs, dataset, method, steps, *ON_CPU)
            losses = _losses(inputs, dataset, method, steps)
            difference = float(np.abs(np.array(losses) / np.array(cpu) - 1).max())  # NaN stays
            row = {"data": dataset, "method": method, "losses": losses, "cpu": cpu}
            row["difference"] = round(difference, 4)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
                _losses(published, dataset, method, 1)
                row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            rows.append(row)
            print(json.dumps(row), file=sys.stderr)
    facts = {"command": "python -m benchmarks.gpu check", **environment(), "device": _device()}
    write_json({**facts, "rows": rows}, out / f"check-{slug(_device())}.json")
    if not all(row["difference"] < NEAR for row in rows):
        raise CrkdError("a loss is not finite, or is far from that on the CPU")
    if len(rows) < len(work):
        raise CrkdError(f"{len(rows)} of {len(work)} were checked in {seconds:.0f} s")


def _losses(inputs: Inputs, dataset: str, method: str, steps: int, *sets: str) -> list[float]:
    sets = (f"train.steps={steps}", "train.log_every=1", *sets)
    run = inputs.run(dataset, *sets, method=method)
    losses: list[float] = []
    train(run, lambda step, values: losses.append(values["total"]))
    return losses


def _device() -> str:
    device = pick_device()
    return describe(device, pick_precision("auto", device))


def speed(out: Path, seconds: float, sizes: Sizes) -> None:
    """Time training steps with and without graphs, beside the published way."""
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        inputs = synthetic(Path(folder), sizes)
        record = measure(inputs, lambda inputs: training_steps(inputs, deadline), pick_device())
    write_json(record, out / f"speed-{slug(record['machine'])}.json")


def train_runs(args: argparse.Namespace) -> None:
    """Train side by side, stop in time, score, and bring back the results."""
    deadline = time.monotonic() + args.seconds
    runs = args.names or unfinished(PLANNED)
    folders = {options: RUNS / _name(options) for options in runs}
    processes = []
    for options, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        words = [*shlex.split(options), "--out", folder, "--set", "train.save_minutes=1"]
        with (folder / "train.txt").open("a", encoding="utf-8") as log:
            processes.append(_crkd("train", args.data_root, words, log))
    for process in processes:
        _ends(process, deadline - args.reserve)
    for process in processes:
        process.terminate()  # it saves its state
    for process in processes:
        if not _ends(process, deadline - PACKING):
            process.kill()
            process.wait()
    dice = score(folders, args.data_root, deadline - PACKING)
    left_out = bring_back(list(folders.values()), args.out, optimizer=args.keep_optimizer)
    command = ["python3", "-m", "benchmarks.gpu", "train", *unfinished([*runs, *PLANNED])]
    print(json.dumps({"dice": dice, "left_out": left_out, "next": shlex.join(command)}))


def score(folders: dict[str, Path], data_root: Path, deadline: float) -> dict[str, float | str]:
    """Evaluate all checkpoints side by side; return Dice (%), or why there is none."""
    dice: dict[str, float | str] = {}
    evaluations = {}
    for (options, run), which, protocol in product(folders.items(), WHICH, PROTOCOLS):
        checkpoint, name = run / f"{which}.pth", f"{run.name}-{which}-{protocol}"
        if time.monotonic() > deadline - SCORING:
            dice[name] = "no time left to score; run the same command again"
        elif checkpoint.is_file():
            words = [checkpoint, "--protocol", protocol, "--out", run / name]
            process = _crkd("evaluate", data_root, words, subprocess.DEVNULL)
            evaluations[options, run / name] = process
        elif which == "last":
            text = (run / "train.txt").read_text(encoding="utf-8")
            dice[name] = text.strip().rpartition("\n")[2]
    for (options, evaluation), process in evaluations.items():
        dice[evaluation.name] = "not scored in time; run the same command again"
        if _ends(process, deadline):
            dice[evaluation.name] = f"crkd evaluate failed with exit code {process.returncode}"
            if process.returncode == 0:
                dice[evaluation.name] = _record(options, evaluation, data_root)
    return dice


def _record(options: str, evaluation: Path, data_root: Path) -> float:
    """Write the record of `evaluation` into the run's folder; return Dice (%)."""
    record = make_record(evaluation, f"crkd train {options}")
    if (data_root / "prepared" / record["config"]["data"]["name"] / QUANTIZED).is_file():
        record["note"] = "images stored in 256 gray levels"
    record["device"] = record["device"] or _device()
    write_json(record, evaluation.with_name(f"{evaluation.name}.json"))
    return round(100 * record["evaluation"]["scores"]["mean"]["dice"][0], 2)


def unfinished(runs: Iterable[str]) -> list[str]:
    """Return the first of `runs` without a record of their end, at most two, of one dataset."""
    done = set()
    for file in (*RESULTS.glob("*.json"), *RUNS.glob("*/*.json")):
        record = read_json(file)
        evaluation = record.get("evaluation", {"step": 0})
        if evaluation["step"] and evaluation["step"] == record["config"]["train"]["steps"]:
            done.add(record["command"])
    left = [run for run in dict.fromkeys(runs) if f"crkd train {run}" not in done]
    return [run for run in left if run.split()[:2] == left[0].split()[:2]][:2]


def _name(options: str) -> str:
    """Turn "--dataset acdc --labeled 3" into "acdc-3"."""
    return slug(" ".join(word for word in shlex.split(options) if not word.startswith("--")))


def _crkd(
    command: str, data_root: Path, words: Sequence[str | Path], log: IO[str] | int
) -> Process:
    program = [sys.executable, "-m", "crkd_cli", command, *words, "--data-root", data_root]
    return subprocess.Popen(program, stdout=log, stderr=log)


def _ends(process: Process, deadline: float) -> bool:
    """Wait for `process` until `deadline`; return whether it ended."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, deadline - time.monotonic()))
    return process.returncode is not None


if __name__ == "__main__":
    main()
