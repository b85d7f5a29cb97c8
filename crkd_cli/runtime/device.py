"""Which device and precision a run uses, and what follows for torch's own settings."""

import ctypes
import os
import sys
import time
from functools import cache

import torch
from torch.nn import functional

from crkd_cli import world
from crkd_cli.errors import UsageError, pluralize


def pick_device(name: str | None = None) -> torch.device:
    """`auto` (or None): the first GPU, else the CPU. Raises UsageError for a device that is not there.

    Of several processes each takes the GPU of its own number on its machine.
    """
    if world.size() > 1:
        name = _own_gpu(name)
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(name))
    except RuntimeError:
        raise UsageError(f"no device is called {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {name!r} is not there: {torch.cuda.device_count()} CUDA devices found; use --device cpu"
        )
    return device


def _own_gpu(name: str | None) -> str | None:
    """`name`, with the number of this process's GPU where it asks for one. Raises UsageError if there are too few."""
    if name == "cpu" or not torch.cuda.is_available():
        return name
    if name not in (None, "auto", "cuda"):
        raise UsageError(
            f"device {name!r} is one for several processes; use auto, cuda (a GPU each) or cpu"
        )
    number, there = int(os.environ.get("LOCAL_RANK", world.rank())), torch.cuda.device_count()
    if number >= there:
        raise UsageError(
            f"more processes on this machine than its {there} GPUs; use --nproc_per_node={there}, or --device cpu"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The precision called `name`; for `auto` bfloat16 where the hardware is faster in it, else float32.

    GPUs are known by their generation. A CPU is measured, because some that have instructions for bfloat16
    (AVX512-bf16 without AMX) are slower with them.
    """
    if name != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
    if device.type == "cuda":
        faster = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        features = torch.cpu.get_capabilities()
        native = bool(features.get("amx_bf16") or features.get("avx512_bf16"))
        faster = native and _bf16_is_faster(torch.get_num_threads())
    return torch.bfloat16 if faster else torch.float32


@cache
def _bf16_is_faster(threads: int) -> bool:
    """Time a layer of a U-Net and its gradient on this CPU in both precisions, in turn, for about 50 ms.

    The processor time of the fastest of a few turns counts, which other work on the machine changes little. Draws
    no random numbers.
    """
    image = torch.ones(4, 64, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.ones(64, 64, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()

    def seconds(precision: torch.dtype) -> float:
        begin = time.process_time()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            features = functional.conv2d(image, weight, padding=1)
            features = functional.leaky_relu(
                functional.batch_norm(features, None, None, training=True)
            )
        torch.autograd.backward(features.float().sum())
        return time.process_time() - begin

    precisions = (torch.bfloat16, torch.float32)
    for precision in precisions:
        seconds(precision)  # the first call also chooses kernels
    turns = [[seconds(precision) for precision in precisions] for _ in range(6)]
    return min(bf16 for bf16, _ in turns) < min(fp32 for _, fp32 in turns)


def describe(device: torch.device, precision: torch.dtype) -> str:
    """One phrase for the first lines of a command: `NVIDIA H200, bf16`, `2 × CPU (1 thread), fp32` for two processes."""
    threads = pluralize(torch.get_num_threads(), "thread")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({threads})"
    several = f"{world.size()} × " if world.size() > 1 else ""
    return f"{several}{name}, {precision_name(precision)}"


def precision_name(precision: torch.dtype) -> str:
    """`bf16` or `fp32`, as in the configuration."""
    return "bf16" if precision == torch.bfloat16 else "fp32"


def configure_backends(*, deterministic: bool) -> None:
    """Kernel choice: tuned by trial, or the deterministic ones."""
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # cuBLAS asks for it; read at its first call
    torch.use_deterministic_algorithms(deterministic, warn_only=False)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Keeps freed memory for the next tensors instead of giving it back to the system (Linux with glibc; elsewhere nothing).

    By default every large tensor on the CPU is fresh memory, whose pages the kernel must map and clear at first touch: half of
    the time of a training step. The process keeps what it needed at most, as PyTorch's allocator for GPUs does.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # a C library without it
        return
    trim_threshold, mmap_max = -1, -4  # malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)


def channels_last(dims: int) -> torch.memory_format:
    """Return the memory layout that convolutions over `dims` axes are fastest in."""
    return (torch.channels_last, torch.channels_last_3d)[dims - 2]
