"""Measure the speed of crkd beside the published way of working, on the same work.

    python -m benchmarks.speed [--rows step-acdc,case] [--data-root DIR] [--out FILE]

Writes benchmarks/results/speed-MACHINE.json. With --rows, the other rows of that file are kept.
A row has the medians of the repeats in seconds, or a single value with its unit.
"""

import argparse
import ctypes
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import baseline
from benchmarks.common import RESULTS, environment, read_json, slug, write_json
from benchmarks.inputs import Inputs, synthetic
from crkd_cli.config import Frame
from crkd_cli.errors import CrkdError
from crkd_cli.inference.inferer import Inferer, Protocol
from crkd_cli.metrics.overlap import confusion, dice, jaccard
from crkd_cli.metrics.surface import surface
from crkd_cli.runtime.device import (
    describe,
    keep_freed_memory,
    pick_device,
    pick_precision,
    precision_name,
)
from crkd_cli.training.loop import Run, train

Row = dict[str, Any]
CRKD = [sys.executable, "-m", "crkd_cli"]
# Steps that are timed at once: a GPU works behind the host.
BLOCK = {"cpu": 1, "cuda": 50}
REPEATS = 3
TRAINING_STEPS = 60  # of the network that segments the case: it predicts an atrium, not noise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="default: %(default)s")
    parser.add_argument("--data-root", type=Path, help="default: synthetic cases")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    begin = time.perf_counter()
    device = pick_device()
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    record = environment() | {
        "command": " ".join(["python -m benchmarks.speed", *sys.argv[1:]]),
        "device": describe(device, pick_precision("auto", device)),
        "inputs": "real cases" if args.data_root else "synthetic cases",
        "note": "",
    }
    out = args.out or RESULTS / f"speed-{slug(gpu or record['machine'])}.json"
    rows = []
    with tempfile.TemporaryDirectory(prefix="crkd-bench-") as folder:
        scratch = Path(folder)
        inputs = Inputs(args.data_root, scratch) if args.data_root else synthetic(scratch)
        try:
            for name in args.rows.split(","):
                for row in ROWS[name](inputs):
                    rows.append(row)
                    print(f"{time.perf_counter() - begin:4.0f} s  {row}", file=sys.stderr)
        except CrkdError as error:
            sys.exit(f"error: {error}")
    record |= {"seconds": round(time.perf_counter() - begin), "rows": rows}
    if out.is_file() and args.rows != parser.get_default("rows"):
        record = merged(read_json(out), record)
    write_json(record, out)


def merged(old: Row, new: Row) -> Row:
    """Return the record `old` with its rows replaced by those that were measured later."""
    later = {row["work"]: row for row in new["rows"]}
    rows = [later.pop(row["work"], row) for row in old["rows"]] + list(later.values())
    works = ", ".join(row["name"] for row in new["rows"])
    note = f"Measured later: {works} (`{new['command']}`, commit {new['commit']}, {new['date']})."
    return old | {"rows": rows, "note": f"{old['note']} {note}".strip()}


def step(inputs: Inputs, name: str) -> Iterator[Row]:
    """A training step of CRKD with its data, the baseline's step, and the wait for data."""
    device = pick_device()
    block = BLOCK[device.type]
    steps = f"train.steps={(REPEATS + 1) * block}"
    run = inputs.run(name, steps, f"train.log_every={block}", "train.save_minutes=1000")
    data = run.checkpoint.config.data
    kept = baseline.dense_bytes(data.labeled_batch_size, data.frame.size)
    dense = device.type == "cuda" and 1.5 * kept + 4e9 < torch.cuda.mem_get_info(device)[0]
    seconds, waiting, crkd_gb = crkd_steps(run)
    loop = baseline.PublishedLoop(run, dense)
    baseline_gb = peak_gb(loop, ours=False)  # also warms up
    baseline_s = median(clock(loop) for _ in range(REPEATS - 1))
    projected = f"only its 256 samples; all pixels would keep {kept / 1e9:.1f} GB for the gradient"
    size = "×".join(map(str, data.frame.size))
    batch = f"{data.labeled_batch_size} + {data.unlabeled_batch_size}"
    yield {
        "name": f"step-{name}",
        "work": f"CRKD step, {name.upper()} {size}, {batch}",
        "baseline_s": baseline_s,
        "crkd_s": median(seconds),
        "baseline_gb": baseline_gb,
        "crkd_gb": crkd_gb,
        "note": f"the baseline projects {'every pixel, as published' if dense else projected}",
    }
    work = f"{name.upper()}, share of a step spent waiting for data"
    yield {"name": f"waiting-{name}", "work": work, "value": 100 * median(waiting), "unit": "%"}


def crkd_steps(run: Run) -> tuple[list[float], list[float], float | None]:
    """Train, and return the seconds of a step and its wait for data by block, and the peak GB."""
    logged: list[dict[str, float]] = []
    run.val = []
    crkd_gb = peak_gb(lambda: train(run, lambda step, values: logged.append(values)))
    logged = [values for values in logged if values][1:]  # the first block warms up
    seconds = [1.0 / values["steps_per_second"] for values in logged]
    return seconds, [values["waiting"] for values in logged], crkd_gb


def case(inputs: Inputs) -> Iterator[Row]:
    """Inference of a scan: published windows, crkd at the same ones, its default, and MONAI."""
    sizes, device = inputs.sizes, pick_device()
    half = tuple(side // 2 for side in sizes.patch)
    sets = (f"train.steps={TRAINING_STEPS}", "train.save_minutes=1000")
    run = inputs.run("la", *sets, size=[side // 32 * 16 for side in sizes.patch], method="supervised")
    run.val = []
    train(run, lambda step, values: None)
    network = run.method.predictor.eval()
    image, _ = first_test_case(inputs)
    precision = pick_precision("auto", device)
    frame = Frame(patch=sizes.patch, stride=sizes.stride)
    labels: dict[str, NDArray[np.uint8]] = {}

    def published() -> None:
        p = baseline.window_probabilities(network, image, sizes.patch, sizes.stride, 2)
        labels["published"] = p.argmax(0).astype(np.uint8)

    def ours(protocol: Protocol) -> None:
        inferer = Inferer(network, frame, inputs.store("la").spec, device, precision, protocol)
        labels[protocol] = inferer(image[None])

    def monai() -> None:
        labels["monai"] = monai_labels(network, image, sizes.patch, device)

    ours("strict")  # warms up
    name = f"LA case {'×'.join(map(str, image.shape))}"
    stride, default = ("×".join(map(str, side)) for side in (sizes.stride, half))
    rows = (
        (f"{name}, published stride {stride}", published, "paper"),
        (f"{name}, published stride {stride} and crkd's default of {default}", published, "strict"),
        (f"{name}, stride {default}, beside MONAI", monai, "strict"),
    )
    for work, other, protocol in rows:
        row = timed(f"case-{protocol}", work, other, lambda protocol=protocol: ours(protocol))
        overlap = agreement(labels["monai" if other is monai else "published"], labels[protocol])
        yield row | {"note": f"the Dice of the two label maps is {overlap:.4f}"}


def monai_labels(
    network: torch.nn.Module, image: NDArray[Any], patch: tuple[int, ...], device: torch.device
) -> NDArray[np.uint8]:
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        x = torch.from_numpy(image)[None, None].to(device)
        p = sliding_window_inference(
            x, patch, 2, lambda x: network(x).softmax(1), overlap=0.5, mode="gaussian"
        )
    return p.argmax(1)[0].cpu().numpy().astype(np.uint8)


def metrics(inputs: Inputs) -> Iterator[Row]:
    """The scores of a class of a case, beside medpy and MONAI."""
    truth = first_test_case(inputs)[1] == 1
    prediction = np.roll(truth, (2,) * truth.ndim, range(truth.ndim))
    prediction[tuple(slice(side // 2, side // 2 + side // 12) for side in truth.shape)] = False

    def ours() -> None:
        voxels = confusion(prediction.astype(np.uint8), truth.astype(np.uint8), 2)
        dice(voxels), jaccard(voxels), surface(prediction, truth, (1.0,) * truth.ndim, 2.0)

    def monai() -> None:
        from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

        pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
        compute_hausdorff_distance(*pair, include_background=True, percentile=95)
        compute_average_surface_distance(*pair, include_background=True, symmetric=True)

    work = f"scores of an LA case {'×'.join(map(str, truth.shape))}"
    row = timed("metrics", work, lambda: baseline.medpy_scores(prediction, truth), ours)
    yield row | {"note": "medpy: dc, jc, hd95 and asd; crkd: these, assd and nsd"}
    row = timed("metrics-monai", f"{work}, beside MONAI", monai, ours)
    yield row | {"note": "MONAI: hd95 and the symmetric mean distance; crkd: all six scores"}


def starts(inputs: Inputs) -> Iterator[Row]:
    """The time of crkd --help, and of crkd train until its first step."""

    def ask() -> None:
        subprocess.run([*CRKD, "--help"], check=True, stdout=subprocess.DEVNULL)

    value = median(clock(ask) for _ in range(5))
    yield {"name": "start-help", "work": "crkd --help", "value": value, "unit": "s"}
    value = median(clock(lambda n=n: first_step(inputs, n)) for n in range(REPEATS))
    work = "crkd train on prepared LA, until its first step"
    yield {"name": "start-train", "work": work, "value": value, "unit": "s"}


def first_step(inputs: Inputs, number: int) -> None:
    """Start a training on small patches and return once its first step is logged."""
    out = inputs.scratch / f"start-{number}"
    words = f"--dataset la --labeled {inputs.labeled[1]} --set data.frame={{patch:[48,48,48]}}"
    for setting in ("data.labeled_batch_size", "data.unlabeled_batch_size", "train.steps"):
        words += f" --set {setting}=1"
    words += f" --set train.log_every=1 --data-root {inputs.data_root} --out {out}"
    command = [*CRKD, "train", *words.split()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        log = out / "log.jsonl"
        while not (log.is_file() and log.stat().st_size):
            if process.poll():
                raise subprocess.CalledProcessError(process.returncode, command)
            time.sleep(0.005)


ROWS: dict[str, Callable[[Inputs], Iterator[Row]]] = {
    "step-acdc": lambda inputs: step(inputs, "acdc"),
    "step-la": lambda inputs: step(inputs, "la"),
    "case": case,
    "metrics": metrics,
    "start": starts,
}
