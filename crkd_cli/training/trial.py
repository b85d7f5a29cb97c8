"""A few training steps on random images, to see whether and how fast this machine trains.

Shapes: B images, C channels, K classes, *S spatial axes.
"""

import os
import time
from dataclasses import dataclass

import torch

from crkd_cli.config import Config, build_config, read_yaml
from crkd_cli.data.batch import Batch, Labeled, Unlabeled
from crkd_cli.data.patch_size import gpu_memory
from crkd_cli.data.store import ChannelInfo, DatasetSpec, numbered_classes
from crkd_cli.errors import UsageError, is_out_of_memory, pluralize
from crkd_cli.methods import METHODS
from crkd_cli.paths import packaged_folder
from crkd_cli.runtime.build import build_method
from crkd_cli.runtime.device import channels_last, describe, pick_device, pick_precision
from crkd_cli.runtime.machine import Finding, gigabytes
from crkd_cli.text import format_size
from crkd_cli.training.optimizer import GuardedOptimizer
from crkd_cli.training.step import TrainingStep

WARM_UP_STEPS, TIMED_STEPS = 2, 3
SPEC = DatasetSpec(
    name="phantom",
    source="phantom",
    classes=numbered_classes(("background", "RV", "Myo", "LV")),
    channels=(ChannelInfo(modality="MR", intensity="zscore"),),
    dims=3,
)


@dataclass(frozen=True)
class Trial:
    """How long a step took, and whether its loss and gradients were finite."""

    seconds: float
    is_finite: bool


def check_training(device_name: str | None) -> list[Finding]:
    """Return the device, its memory, the threads, and what a training step on it takes."""
    try:
        device = pick_device(device_name)
    except UsageError as error:
        return [Finding("device", "none", str(error))]
    findings = [_describe_device(device), *_gpu_memory(device), _threads()]
    return [*findings, _check_step(device)]


def time_step(config: Config, device: torch.device) -> Trial:
    """Train on random images, and return the time of the fastest step."""
    method = build_method(config, SPEC).to(device).train()
    optimizer = GuardedOptimizer(method, config.train)
    precision = pick_precision(config.train.precision, device)
    step = TrainingStep(method, optimizer, config.train, len(SPEC.classes), precision)
    batch = random_batch(config, device)
    times = []
    for number in range(WARM_UP_STEPS + TIMED_STEPS):
        begin = time.perf_counter()
        step.prepare(number)
        step.run(batch)
        skipped = optimizer.skipped()  # waits for the device
        times.append(time.perf_counter() - begin)
    return Trial(min(times[WARM_UP_STEPS:]), skipped == 0)


def random_batch(config: Config, device: torch.device) -> Batch:
    """Return a batch of noise, of the size and with the views that the method asks for."""
    data, method_class = config.data, METHODS[config.method]
    generator = torch.Generator().manual_seed(config.train.seed)

    def images(count: int) -> torch.Tensor:
        size = (count, SPEC.channel_count, *data.frame.size)
        noise = torch.randn(size, generator=generator).to(device)
        return noise.contiguous(memory_format=channels_last(data.frame.dims))

    size = (data.labeled_batch_size, *data.frame.size)
    label = torch.randint(len(SPEC.classes), size, generator=generator).to(device)
    streams = [
        Unlabeled(
            images(data.unlabeled_batch_size),
            tuple(images(data.unlabeled_batch_size) for _ in range(method_class.strong_views)),
        )
        for _ in range(method_class.unlabeled_streams)
    ]
    return Batch(Labeled(images(data.labeled_batch_size), label), *streams)


def _describe_device(device: torch.device) -> Finding:
    text = describe(device, pick_precision("auto", device))
    if device.type == "cpu" and torch.version.cuda is None and gpu_memory() is not None:
        text += "; there is an NVIDIA GPU, but this PyTorch is a CPU build: install one with CUDA"
    return Finding("device", text)


def _gpu_memory(device: torch.device) -> list[Finding]:
    if device.type != "cuda":
        return []
    free, total = torch.cuda.mem_get_info(device)
    text = f"{gigabytes(free)} of {gigabytes(total)} free, CUDA {torch.version.cuda}"
    return [Finding("GPU memory", text)]


def _threads() -> Finding:
    text = f"{torch.get_num_threads()} of {pluralize(os.cpu_count() or 1, 'core')}"
    limit = os.environ.get("OMP_NUM_THREADS")
    return Finding("threads", f"{text} (OMP_NUM_THREADS={limit})" if limit else text)


def _check_step(device: torch.device) -> Finding:
    file = packaged_folder("configs") / "phantom.yaml"
    config = build_config(read_yaml(file), file)
    data = config.data
    what = (
        f"{config.method} on {data.labeled_batch_size} labeled and {data.unlabeled_batch_size} "
        f"unlabeled images of {format_size(data.frame.size)}"
    )
    try:
        trial = time_step(config, device)
    except (MemoryError, RuntimeError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        advice = "install a PyTorch for this device, or use --device cpu"
        if is_out_of_memory(error):
            advice = "free some memory"
        return Finding("step", what, f"a training step failed ({reason}); {advice}")
    problem = ""
    if not trial.is_finite:
        problem = "a training step gave no finite loss; use --set train.precision=fp32"
    return Finding("step", f"{trial.seconds:.2g} s: {what}", problem)
