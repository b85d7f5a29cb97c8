"""The speed of training and inference on a device beside the published way of working, in the schema of benchmarks/speed/row.py.

The package's steps are timed by its own loop over blocks of steps, because it does not wait for the device in between.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import msgspec
import numpy as np
import torch

from benchmarks import run as bench
from benchmarks.gpu.pack import commit
from benchmarks.published import dense_bytes, window_probabilities
from benchmarks.speed.bound import bounds
from benchmarks.speed.cases import agreement, first_test_case, operations, trained
from benchmarks.speed.compiled import compiled
from benchmarks.speed.inputs import Inputs
from benchmarks.speed.loops import PublishedLoop
from benchmarks.speed.row import Row
from benchmarks.speed.timing import clock
from crkd_cli.config import Frame
from crkd_cli.inference.inferer import Inferer
from crkd_cli.runtime.device import pick_device, pick_precision
from crkd_cli.training.loop import train

BLOCK = 50  # steps that the package's loop is timed over at once
BLOCKS = 4  # and the first is not counted
REPEATS = 4  # of the baseline's step
LENGTHS = {"acdc": 20_000, "la": 9_000}  # steps of a published run
LONG = 600.0  # seconds that such a run may take


def measure(inputs: Inputs, command: str, block: int = BLOCK) -> Iterator[dict[str, Any]]:
    """A speed file's content for the device of the stores' configurations, after every row with what there is so far."""
    begin = time.perf_counter()
    device = pick_device()
    precision = pick_precision("auto", device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    facts = {
        **bench.facts(),
        "inputs": inputs.kind,
        "device": device.type,
        "machine": gpu or bench.processor(),
        "flags": [],
        "precision": "bf16" if precision == torch.bfloat16 else "fp32",
        "commit": commit(),
        "command": command,
        "note": "",
        "bound": bounds(inputs.sizes, precision, device),
    }
    rows: list[dict[str, Any]] = []
    for row in _rows(inputs, device, precision, block):
        rows.append(row.tree())
        yield {**facts, "seconds": round(time.perf_counter() - begin, 1), "rows": list(rows)}


def _rows(
    inputs: Inputs, device: torch.device, precision: torch.dtype, block: int
) -> Iterator[Row]:
    """Those that matter most first, because the time may not do for all."""
    for name in LENGTHS:
        yield from steps(inputs, name, block)
    yield case(inputs, device, precision)
    yield from compiled(inputs)


def steps(inputs: Inputs, name: str, block: int) -> Iterator[Row]:
    """A CRKD step with data, the wait for data, and what a published run would take at that rate."""
    run = inputs.run(name, steps=BLOCKS * block)
    config = run.checkpoint.config
    timed = msgspec.structs.replace(
        config, train=msgspec.structs.replace(config.train, log_every=block)
    )
    run.checkpoint = replace(run.checkpoint, config=timed)
    run.val = []  # validation shares the device
    logged: list[dict[str, float]] = []
    cuda = run.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(run.device)
    train(run, lambda step, values: logged.append(values) if values else None)
    peak = torch.cuda.max_memory_allocated(run.device) / 1e9 if cuda else None
    ours = [1.0 / values["steps_per_second"] for values in logged[1:]]

    data = config.data
    kept = dense_bytes(data.labeled, data.frame.size)
    dense = cuda and 1.5 * kept + 4e9 < torch.cuda.mem_get_info(run.device)[0]
    loop = PublishedLoop(run, dense)
    loop()  # warms up
    theirs = [
        clock(loop) for _ in range(REPEATS if block == BLOCK else 1)
    ]  # it ends by reading the loss: all is done
    images = data.labeled + data.unlabeled
    what = f"CRKD step, {name.upper()} {'×'.join(map(str, data.frame.size))}, {data.labeled} + {data.unlabeled}"
    yield Row(
        f"step-{name}",
        "target",
        what,
        median(theirs),
        median(ours),
        target=8.0,
        repeats=len(ours),
        crkd_gb=peak,
        note=f"blocks of {block} steps; the baseline projects {'every pixel, as published' if dense else 'its samples only'}",
        detail={
            "images_per_s": images / median(ours),
            "baseline_all_s": theirs,
            "crkd_all_s": ours,
        },
    )
    waiting = 100.0 * median(values["waiting"] for values in logged[1:])
    yield Row(
        f"waiting-{name}",
        "target",
        f"{name.upper()} step waiting for data",
        value=waiting,
        unit="%",
        target=5.0,
    )
    yield Row(
        f"run-{name}",
        "target",
        f"{name.upper()} run of {LENGTHS[name]:,} steps",
        value=LENGTHS[name] * median(ours),
        unit="s",
        target=LONG,
        note="steps times the step's time, without validation",
    )


def case(inputs: Inputs, device: torch.device, precision: torch.dtype) -> Row:
    """One scan at the published windows: the published loop and crkd."""
    image, _ = first_test_case(inputs)
    network, sizes = trained(inputs).to(device), inputs.sizes
    ours = Inferer(
        network,
        Frame(patch=sizes.patch, stride=sizes.stride),
        inputs.store("la").spec,
        device,
        precision,
        "paper",
    )
    flops = operations(lambda: ours(image[None]))  # and warms up
    begin = time.perf_counter()
    found = ours(image[None])
    middle = time.perf_counter()
    published = (
        window_probabilities(network, image, sizes.patch, sizes.stride, 2)
        .argmax(0)
        .astype(np.uint8)
    )
    end = time.perf_counter()
    dice = agreement(found, published)
    what = f"one LA case {'×'.join(map(str, image.shape))}, published windows"
    note = f"Dice of the two label maps {dice:.4f}" + (
        "" if dice >= 0.999 else ", below 0.999: NOT the same labels"
    )
    detail = {"dice": dice, "flops": flops}
    return Row(
        "case",
        "target",
        what,
        end - middle,
        middle - begin,
        target=6.0,
        repeats=1,
        note=note,
        detail=detail,
    )
