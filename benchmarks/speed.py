"""Measure the speed of crkd on a CPU beside the published way, or the cost of its parts.

    python -m benchmarks.speed [speed|methods|augment]

Writes benchmarks/results/speed-MACHINE.json, or the cost of every method to methods-MACHINE.json,
or that of augmentation to augment-MACHINE.json. On a GPU, use benchmarks.gpu.
"""

import argparse
import ctypes
import gc
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from timeit import timeit
from typing import Any

import numpy as np
import torch

from benchmarks import baseline
from benchmarks.common import RESULTS, environment, slug, write_json
from benchmarks.inputs import LABELED, Inputs, synthetic
from crkd_cli.config import Frame
from crkd_cli.inference.inferer import Inferer, Protocol
from crkd_cli.methods import METHODS
from crkd_cli.metrics.overlap import confusion, dice, jaccard
from crkd_cli.metrics.surface import surface
from crkd_cli.runtime.device import describe, keep_freed_memory, pick_precision
from crkd_cli.training.loop import Run, train
from crkd_cli.training.step import TrainingStep

Row = dict[str, Any]
Work = Callable[[], object]
clock = partial(timeit, number=1)  # seconds of one call
CPU = torch.device("cpu")
TIMING = ("train.device=cpu", "train.log_every=1", "train.save_minutes=1000")
REPEATS = 3
SMALL = (64, 64, 48)  # a patch, for what does not need the published size
COST_BATCH, COST_REPEATS = {"acdc": 4, "la": 2}, 7
AUGMENTED = (("acdc", (128, 128), 8), ("acdc", (256, 256), 12), ("la", (112, 112, 80), 2))
AUGMENTED_STEPS = 20  # so many, since each draws which images it transforms


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = {"speed": speeds, "methods": costs, "augment": augmentation}
    parser.add_argument("kind", nargs="?", choices=kinds, default="speed")
    kind = parser.parse_args().kind
    with tempfile.TemporaryDirectory(prefix="crkd-bench-") as folder:
        record = measure(synthetic(Path(folder)), kinds[kind])
    write_json(record, RESULTS / f"{kind}-{slug(record['machine'])}.json")


def measure(
    inputs: Inputs, rows: Callable[[Inputs], Iterator[Row]], device: torch.device = CPU
) -> dict[str, Any]:
    """Return a record of the machine, the command and the `rows`, which are printed on the way."""
    begin = time.perf_counter()
    command = " ".join([f"python -m benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    record = environment() | {"command": command, "note": "", "rows": []}
    record["device"] = describe(device, pick_precision("auto", device))
    if device.type == "cuda":
        record["machine"] = torch.cuda.get_device_name(device)
    for row in rows(inputs):
        print(f"{time.perf_counter() - begin:4.0f} s  {row}", file=sys.stderr, flush=True)
        record["rows"].append(row)
    return record | {"seconds": round(time.perf_counter() - begin)}


def speeds(inputs: Inputs) -> Iterator[Row]:
    yield from step(inputs, "acdc")
    yield from step(inputs, "la")
    yield from case(inputs)
    yield metrics(inputs)
    yield start("crkd --help", "--help", 5)
    words = f"train --dataset la --labeled {LABELED} --method supervised --set train.steps=1"
    words += f" --set data.frame={{patch:[48,48,48]}} --data-root {inputs.data_root}"
    yield start("crkd train of one step on patches of LA", f"{words} --out {inputs.scratch}/start")


def step(inputs: Inputs, name: str) -> Iterator[Row]:
    """Time a training step of CRKD with its data, the baseline's step, and the wait for data."""
    run = inputs.run(name, *TIMING, f"train.steps={REPEATS + 1}")
    logged, crkd_gb = crkd_steps(run)
    baseline_step = partial(next, baseline.training_steps(run, dense=False))
    default_malloc()
    baseline_gb = peak_gb(baseline_step)  # also warms up
    baseline_s = median(clock(baseline_step) for _ in range(REPEATS))
    keep_freed_memory()
    data = run.checkpoint.config.data
    size, batch = "×".join(map(str, data.frame.size)), data.labeled_batch_size
    gigabytes = baseline.dense_bytes(batch, data.frame.size) / 1e9
    yield {
        "work": f"CRKD step, {name.upper()} {size}, batch {batch} + {data.unlabeled_batch_size}",
        "baseline_s": baseline_s,
        "crkd_s": median(1.0 / values["steps_per_second"] for values in logged),
        "baseline_gb": baseline_gb,
        "crkd_gb": crkd_gb,
        "note": f"the baseline projects 256 samples only; all pixels would keep {gigabytes:.1f} GB",
    }
    waiting = 100 * median(values["waiting"] for values in logged)
    yield {"work": f"{name.upper()} step waiting for data", "value": waiting, "unit": "%"}


def crkd_steps(run: Run) -> tuple[list[dict[str, float]], float]:
    """Train; return what was logged after the first step, and the peak memory in GB."""
    logged: list[dict[str, float]] = []
    gigabytes = peak_gb(lambda: train(run, lambda step, values: logged.append(values)))
    return logged[1:], gigabytes


def case(inputs: Inputs) -> Iterator[Row]:
    """Time the inference of a scan: published windows beside the baseline, crkd's beside MONAI."""
    patch, stride = inputs.sizes.patch, inputs.sizes.stride
    run = inputs.run("la", *TIMING, method="supervised")
    network, spec = run.method.predictor.eval(), run.store.spec
    image = np.array(run.store.image("case0")[0])

    def ours(protocol: Protocol) -> None:
        frame = Frame(patch=patch, stride=stride)
        Inferer([network], frame, spec, CPU, run.precision, protocol)(image[None])

    def published() -> None:
        baseline.window_probabilities(network, image, patch, stride, 2).argmax(0)

    @torch.inference_mode()
    def monai() -> None:
        from monai.inferers import sliding_window_inference

        x = torch.from_numpy(image)[None, None]
        logits = sliding_window_inference(x, patch, 2, network, 0.5, "gaussian")
        logits.argmax(1)

    name = f"LA case {'×'.join(map(str, image.shape))}"
    work = f"{name}, published stride {'×'.join(map(str, stride))}"
    yield timed(work, published, lambda: ours("paper"))
    work = f"{name}, stride of half a patch; baseline: MONAI in fp32"
    yield timed(work, monai, lambda: ours("strict"))


def metrics(inputs: Inputs) -> Row:
    """Time the scores of a case: its label moved by two voxels against itself."""
    truth = np.array(inputs.store("la").label("case0"))
    moved = np.roll(truth, (2, 2, 2), (0, 1, 2))

    def ours() -> None:
        voxels = confusion(moved, truth, 2)
        dice(voxels), jaccard(voxels), surface(moved == 1, truth == 1, (1.0, 1.0, 1.0), 2.0)

    work = f"scores of an LA case {'×'.join(map(str, truth.shape))}; baseline: medpy"
    row = timed(work, lambda: baseline.medpy_scores(moved == 1, truth == 1), ours)
    return row | {"note": "medpy: Dice, Jaccard, HD95, ASD; crkd: also ASSD, NSD"}


def start(work: str, words: str, repeats: int = 1) -> Row:
    """Time a command from its start to its end."""
    command = [sys.executable, "-m", "crkd_cli", *words.split()]
    run = partial(subprocess.run, command, check=True, capture_output=True)
    return {"work": work, "value": median(clock(run) for _ in range(repeats)), "unit": "s"}


def costs(inputs: Inputs) -> Iterator[Row]:
    """Time the fastest of a few steps of every method, late in a run, where all terms count."""
    base: dict[str, Row] = {}
    names = ["supervised", *(name for name in METHODS.names() if name != "supervised")]
    for (name, batch), method in product(COST_BATCH.items(), names):
        size = inputs.sizes.image if name == "acdc" else SMALL
        before = peak_gb(lambda: None)
        run = inputs.run(name, *TIMING, "train.steps=1000", method=method, size=size, batch=batch)
        run.checkpoint = replace(run.checkpoint, step=1000 - COST_REPEATS - 1)
        logged, gigabytes = crkd_steps(run)
        seconds = 1.0 / max(values["steps_per_second"] for values in logged)
        row = {"dataset": name, "method": method, "size": list(size), "batch": batch}
        row |= {"step_s": seconds, "memory_gb": gigabytes - before}
        supervised = base.setdefault(name, row)
        step, memory = (row[key] / supervised[key] for key in ("step_s", "memory_gb"))
        yield row | {"step": step, "memory": memory}


def augmentation(inputs: Inputs) -> Iterator[Row]:
    """Time the augmentation of a batch, published and strong, and a step without it.

    On one thread, in CPU seconds, which do not count what other programs take: means over steps of
    the augmentation, the median of a few steps of training. Items are read before.
    """
    torch.set_num_threads(1)
    for (name, size, batch), method in product(AUGMENTED, ("supervised", "crkd")):
        row: Row = {"dataset": name, "method": method, "size": list(size), "batch": batch}
        for augment in ("published", "strong"):
            sets = (*TIMING, f"data.augment={augment}", "train.steps=1000")
            run = inputs.run(name, *sets, method=method, size=size, batch=batch)
            loader = run.loader
            items = [loader.read(step) for step in range(REPEATS)]
            loader.batch(items[0], 0)  # warms up
            begin = time.process_time()
            for step in range(AUGMENTED_STEPS):
                loader.batch(items[step % REPEATS], step)
            row[f"{augment}_s"] = (time.process_time() - begin) / AUGMENTED_STEPS
        row["step_s"] = step_seconds(run)
        share = row["strong_s"] / (row["step_s"] + row["strong_s"])
        more = (row["strong_s"] - row["published_s"]) / (row["step_s"] + row["published_s"])
        yield row | {"share": share, "more": more}


def step_seconds(run: Run) -> float:
    """Return the CPU seconds of a training step late in the run, without data and augmentation."""
    config, classes = run.checkpoint.config.train, len(run.store.spec.classes)
    step = TrainingStep(run.method, run.optimizer, config, classes, run.precision)
    batch = run.loader.batch(run.loader.read(0), 0)
    seconds = []
    for number in range(config.steps - REPEATS - 1, config.steps):
        step.prepare(number)
        begin = time.process_time()
        step.run(batch)
        seconds.append(time.process_time() - begin)
    return median(seconds[1:])


def timed(work: str, other: Work, ours: Work) -> Row:
    """Return the median seconds of both, in turn, after a call that warms up."""
    other(), ours()
    theirs, crkd = [], []
    for _ in range(REPEATS):
        default_malloc()
        theirs.append(clock(other))
        keep_freed_memory()
        ours()  # fills the heap that the other has emptied
        crkd.append(clock(ours))
    return {"work": work, "baseline_s": median(theirs), "crkd_s": median(crkd)}


def default_malloc() -> None:
    """Undo keep_freed_memory: allocate as glibc does in a process that frees large blocks."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.malloc_trim(0)
        library.mallopt(-4, 65536)  # M_MMAP_MAX
        library.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD


def peak_gb(work: Work) -> float:
    """Return the peak memory of this process during `work`, on Linux; elsewhere NaN."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    work()
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024e-9 for line in lines if line.startswith("VmHWM"))
    return math.nan


if __name__ == "__main__":
    main()
