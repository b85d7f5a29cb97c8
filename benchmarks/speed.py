"""Measure the speed of crkd beside the published way of working, and the cost of every method.

    python -m benchmarks.speed [--methods] [--out FILE]

Writes benchmarks/results/speed-MACHINE.json, with --methods methods-MACHINE.json.
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
from itertools import product
from pathlib import Path
from statistics import median
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
from crkd_cli.runtime.device import describe, keep_freed_memory, pick_device, pick_precision
from crkd_cli.training.loop import Run, train

Row = dict[str, Any]
Work = Callable[[], object]
CRKD = [sys.executable, "-m", "crkd_cli"]
BLOCK = {"cpu": 1, "cuda": 50}  # steps that are timed at once: a GPU works behind the host
REPEATS = 3
SMALL = (64, 64, 48)  # a patch, for what does not need the published size
COST_BATCH, COST_REPEATS = {"acdc": 4, "la": 2}, 7


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", action="store_true", help="measure the cost of methods")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crkd-bench-") as folder:
        record = measure(synthetic(Path(folder)), costs if args.methods else speeds)
    name = f"{'methods' if args.methods else 'speed'}-{slug(record['machine'])}.json"
    write_json(record, args.out or RESULTS / name)


def measure(inputs: Inputs, rows: Callable[[Inputs], Iterator[Row]]) -> dict[str, Any]:
    """Return a record of the machine, the command and the `rows`, which are printed on the way."""
    begin, device = time.perf_counter(), pick_device()
    record = environment() | {
        "command": " ".join(["python -m benchmarks.speed", *sys.argv[1:]]),
        "device": describe(device, pick_precision("auto", device)),
        "note": "",
        "rows": [],
    }
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
    yield from metrics(inputs)
    yield start("crkd --help", "--help", 5)
    words = f"train --dataset la --labeled {LABELED} --method supervised"
    words += " --set data.frame={patch:[48,48,48]} --set train.steps=1"
    words += f" --data-root {inputs.data_root} --out {inputs.scratch}/start"
    yield start("crkd train of one step on small patches of LA", words)


def step(inputs: Inputs, name: str) -> Iterator[Row]:
    """Time a training step of CRKD with its data, the baseline's step, and the wait for data."""
    run = inputs.run(name, *timing((REPEATS + 1) * BLOCK[pick_device().type]))
    data, device = run.checkpoint.config.data, run.device
    kept = baseline.dense_bytes(data.labeled_batch_size, data.frame.size)
    dense = device.type == "cuda" and 1.5 * kept + 4e9 < torch.cuda.mem_get_info(device)[0]
    logged, crkd_gb = crkd_steps(run)
    loop = baseline.PublishedLoop(run, dense)
    default_malloc()
    baseline_gb = peak_gb(loop)  # the first step warms up
    baseline_s = median(clock(loop) for _ in range(REPEATS))
    keep_freed_memory()
    size = "×".join(map(str, data.frame.size))
    projected = f"only its 256 samples; all pixels would keep {kept / 1e9:.1f} GB"
    yield {
        "work": f"CRKD step, {name.upper()} {size}, batch {data.labeled_batch_size} + "
        f"{data.unlabeled_batch_size}",
        "baseline_s": baseline_s,
        "crkd_s": median(1.0 / values["steps_per_second"] for values in logged),
        "baseline_gb": baseline_gb,
        "crkd_gb": crkd_gb,
        "note": f"the baseline projects {'every pixel, as published' if dense else projected}",
    }
    waiting = 100 * median(values["waiting"] for values in logged)
    yield {"work": f"{name.upper()} step waiting for data", "value": waiting, "unit": "%"}


def timing(steps: int) -> tuple[str, ...]:
    """Return the settings of a run of `steps` that is logged after every block."""
    block = BLOCK[pick_device().type]
    return f"train.steps={steps}", f"train.log_every={block}", "train.save_minutes=1000"


def crkd_steps(run: Run) -> tuple[list[dict[str, float]], float]:
    """Train; return what was logged, without the first block, and the peak memory in GB."""
    logged: list[dict[str, float]] = []
    run.val = []
    gb = peak_gb(lambda: train(run, lambda step, values: logged.append(values)))
    return [values for values in logged if values][1:], gb


def case(inputs: Inputs) -> Iterator[Row]:
    """Time the inference of a scan: published windows beside the baseline, crkd's beside MONAI."""
    sizes = inputs.sizes
    # A network that has learned a little: it predicts an atrium, not noise.
    small = [min(pair) for pair in zip(SMALL, sizes.patch, strict=True)]
    run = inputs.run("la", "train.steps=60", size=small, method="supervised")
    train(run, lambda step, values: None)
    network = run.method.predictor.eval()
    image = np.array(inputs.store("la").image("case0")[0])
    frame = Frame(patch=sizes.patch, stride=sizes.stride)
    labels: dict[str, Any] = {}

    def ours(protocol: Protocol) -> None:
        inferer = Inferer(network, frame, run.store.spec, run.device, run.precision, protocol)
        labels["crkd"] = inferer(image[None])

    def published() -> None:
        p = baseline.window_probabilities(network, image, sizes.patch, sizes.stride, 2)
        labels["other"] = p.argmax(0)

    @torch.inference_mode()
    def monai() -> None:
        from monai.inferers import sliding_window_inference

        x = torch.from_numpy(image)[None, None].to(run.device)
        logits = sliding_window_inference(x, sizes.patch, 2, network, 0.5, "gaussian")
        labels["other"] = logits.argmax(1)[0].cpu().numpy()

    name = f"LA case {'×'.join(map(str, image.shape))}"
    for work, other, protocol in (
        (f"{name}, published stride {'×'.join(map(str, sizes.stride))}", published, "paper"),
        (f"{name}, stride of half a patch; baseline: MONAI in fp32", monai, "strict"),
    ):
        times = timed(other, lambda protocol=protocol: ours(protocol))
        same = dice(confusion(labels["crkd"], labels["other"].astype(np.uint8), 2))[1]
        yield {"work": work, **times, "note": f"Dice of the two label maps {same:.4f}"}


def metrics(inputs: Inputs) -> Iterator[Row]:
    """Time the scores of a case: its label moved by two voxels against itself."""
    truth = np.array(inputs.store("la").label("case0"))
    moved = np.roll(truth, (2, 2, 2), (0, 1, 2))

    def ours() -> None:
        voxels = confusion(moved, truth, 2)
        dice(voxels), jaccard(voxels), surface(moved == 1, truth == 1, (1.0, 1.0, 1.0), 2.0)

    times = timed(lambda: baseline.medpy_scores(moved == 1, truth == 1), ours)
    work = f"scores of an LA case {'×'.join(map(str, truth.shape))}; baseline: medpy"
    yield {"work": work, **times, "note": "medpy: Dice, Jaccard, HD95, ASD; crkd: also ASSD, NSD"}


def start(work: str, words: str, repeats: int = 1) -> Row:
    """Time a command from its start to its end."""

    def command() -> None:
        subprocess.run([*CRKD, *words.split()], check=True, capture_output=True)

    return {"work": work, "value": median(clock(command) for _ in range(repeats)), "unit": "s"}


def costs(inputs: Inputs) -> Iterator[Row]:
    """Time a step of every method, late in a run, where all its terms count.

    The fastest of a few steps counts: whatever else the machine does only adds to it.
    """
    last, base = 1000, {}
    names = ["supervised", *(name for name in METHODS.names() if name != "supervised")]
    for (name, batch), method in product(COST_BATCH.items(), names):
        size = inputs.sizes.image if name == "acdc" else SMALL
        before = peak_gb(lambda: None)
        run = inputs.run(name, *timing(last), size=size, batch=batch, method=method)
        first = last - (COST_REPEATS + 1) * BLOCK[run.device.type]
        run.checkpoint = replace(run.checkpoint, step=first)
        logged, gb = crkd_steps(run)
        costs = 1.0 / max(values["steps_per_second"] for values in logged), gb - before
        base.setdefault(name, costs)
        row = {"dataset": name, "method": method, "size": list(size), "batch": batch}
        row |= {"step_s": costs[0], "memory_gb": costs[1]}
        yield row | {"step": costs[0] / base[name][0], "memory": costs[1] / base[name][1]}


def timed(other: Work, ours: Work) -> Row:
    """Return the median seconds of both, in turn, after a call that warms up."""
    other(), ours()
    theirs, crkd = [], []
    for _ in range(REPEATS):
        default_malloc()
        theirs.append(clock(other))
        keep_freed_memory()
        ours()  # fills the heap that the other has emptied
        crkd.append(clock(ours))
    return {"baseline_s": median(theirs), "crkd_s": median(crkd)}


def clock(work: Work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def default_malloc() -> None:
    """Undo keep_freed_memory: allocate as glibc does in a process that frees large blocks."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.malloc_trim(0)
        library.mallopt(-4, 65536)  # M_MMAP_MAX
        library.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD


def peak_gb(work: Work) -> float:
    """Return the peak memory of the GPU, or of this process on Linux, during `work`."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / 1e9
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
