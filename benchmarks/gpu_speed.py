"""How long training steps take on a GPU, what it does meanwhile, and how much work they are."""

import gc
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import baseline
from benchmarks.inputs import Inputs
from benchmarks.speed import REPEATS, Row, clock
from crkd_cli.training.loop import Run, train
from crkd_cli.training.step import TrainingStep

STEPS = (("acdc", "crkd"), ("acdc", "unimatch"), ("la", "crkd"))
PROFILED = 10  # steps
KERNELS = 20  # that take the most time are listed
COPIED = 2**27  # numbers in float32, half a GB


def training_steps(inputs: Inputs, deadline: float, steps: int = 20) -> Iterator[Row]:
    """Time training steps on the GPU, or else the CPU, with and without graphs, until `deadline`.

    A run warms up for `steps` steps and is timed thrice as long; the steps after that are profiled.
    """
    for (name, method), graphs in product(STEPS, (False, True)):
        if time.monotonic() < deadline:
            gc.collect()
            torch.cuda.empty_cache()
            yield training_step(inputs, name, method, graphs, steps)


def training_step(inputs: Inputs, name: str, method: str, graphs: bool, steps: int) -> Row:
    sets = ["train.save_minutes=1000", f"train.log_every={steps}", f"train.graphs={graphs}"]
    run = inputs.run(name, f"train.steps={4 * steps + PROFILED}", *sets, method=method)
    cuda = run.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds, busy, kernels = profiled_steps(run, steps)
    data = run.checkpoint.config.data
    work = f"{method} step, {name.upper()} {'×'.join(map(str, data.frame.size))}, batch "
    work += f"{data.labeled_batch_size} + {data.unlabeled_batch_size}"
    work += ", with graphs" if graphs else ", without graphs"
    row = {"work": work, "value": seconds, "unit": "s", "kernels": kernels}
    row["note"] = "the profiler saw no work"
    if busy:
        row["note"] = f"the device works {100 * busy / seconds:.0f} % of the step"
    if cuda:
        row["crkd_gb"] = torch.cuda.max_memory_allocated() / 1e9
        row["note"] += f"; {torch.cuda.max_memory_reserved() / 1e9:.1f} GB reserved"
    row["note"] += f"; {describe_work(run)}"
    if method == "crkd":
        with suppress(torch.OutOfMemoryError):
            baseline_step = partial(next, baseline.training_steps(run, dense=True))
            baseline_step()  # warms up
            row["baseline_s"] = median(clock(baseline_step) for _ in range(REPEATS))
            row["crkd_s"] = row.pop("value")
            row["note"] += "; the baseline projects every pixel, as published"
    return row


def profiled_steps(run: Run, steps: int) -> tuple[float, float, list[dict[str, Any]]]:
    """Return the seconds of a step, for how many of them the device works, and at what."""
    cuda = run.device.type == "cuda"
    profiler = profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])
    logged: list[dict[str, float]] = []

    def report(step: int, values: dict[str, float]) -> None:
        logged.extend([values] if values else [])
        if step == 4 * steps:  # the step was logged, so nothing is left to do on the device
            profiler.start()
        elif step == 4 * steps + PROFILED:
            profiler.stop()

    train(run, report)
    seconds = median(1.0 / values["steps_per_second"] for values in logged[1:4])
    device = DeviceType.CUDA if cuda else DeviceType.CPU
    spans = [
        (event.time_range.start, event.time_range.end, event.name)  # in µs
        for event in profiler.events()
        if event.device_type == device
    ]
    busy = covered([(begin, end) for begin, end, _ in spans])
    return seconds, busy / 1e6 / PROFILED, list_kernels(spans)


def covered(intervals: list[tuple[float, float]]) -> float:
    """Return the length of the union of `intervals` (begin, end)."""
    total, end = 0.0, -math.inf
    for begin, stop in sorted(intervals):
        total += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return total


def list_kernels(spans: list[tuple[float, float, str]]) -> list[dict[str, Any]]:
    """List the KERNELS that take the most time: name, calls and milliseconds per step."""
    durations = defaultdict(list)
    for begin, end, name in spans:
        durations[name].append(end - begin)
    kernels = [
        {"name": name[:120], "calls": len(each) / PROFILED, "ms": sum(each) / 1e3 / PROFILED}
        for name, each in durations.items()
    ]
    return sorted(kernels, key=lambda kernel: kernel["ms"], reverse=True)[:KERNELS]


# The least that a step needs


class Traffic(TorchDispatchMode):
    """Counts the operations on tensors, and the bytes that they read and write."""

    _FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "device")
    _PICKING = ("index_select", "index", "gather")  # read as much as they return
    _FILLING = ("copy_", "fill_", "zero_")  # do not read what they change

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in (*self._FREE, "_unsafe_view"):
            read = [_bytes(tensor) for tensor in _tensors((args, kwargs))]
            written = sum(_bytes(tensor) for tensor in _tensors(result))
            if name in self._PICKING:
                read[0] = min(read[0], written)
            elif name in self._FILLING:
                read[0] = 0
            self.operations += 1
            self.bytes += sum(read) + written
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Return the size of `tensor` in memory, where an expanded axis takes none."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(side for side, stride in sides if stride)


def describe_work(run: Run) -> str:
    """Say how many operations, how much arithmetic and how much memory traffic a step is.

    The traffic divided by the speed of a copy is the least time that a step takes as it is
    written; a kernel that joins several operations may take less.
    """
    config, classes = run.checkpoint.config, len(run.checkpoint.spec.classes)
    step = TrainingStep(run.method, run.optimizer, config.train, classes, run.precision)
    step.prepare(config.train.steps - 1)
    batch = run.loader.batch(run.loader.read(0), 0)
    traffic, flops = Traffic(), FlopCounterMode(display=False)
    with flops, traffic:
        step.run(batch)
    milliseconds = 1e3 * traffic.bytes / copied_bytes_per_second(run.device)
    return (
        f"{traffic.operations:,} operations, {flops.get_total_flops() / 1e9:,.0f} GFLOP, "
        f"{traffic.bytes / 1e9:.3g} GB through memory, {milliseconds:.3g} ms at the speed of a copy"
    )


def copied_bytes_per_second(device: torch.device) -> float:
    """Return how many bytes the device reads and writes per second while it copies."""
    source = torch.ones(COPIED, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        target[0].item()  # waits for the device

    copy()
    return 2 * 4 * COPIED / min(clock(copy) for _ in range(REPEATS))
