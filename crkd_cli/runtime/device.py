"""Device, precision and the backend settings that follow from them."""

import ctypes
import os
import sys
import time
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from crkd_cli import world
from crkd_cli.errors import UsageError, pluralize

Module = TypeVar("Module", bound=nn.Module)


def pick_device(name: str | None = None) -> torch.device:
    """Return the device called `name`; `auto` or None means the first GPU, else the CPU.

    With several processes, each gets the GPU of its local rank. Raises UsageError if there is no
    such device.
    """
    if world.size() > 1:
        name = _pick_local_gpu(name)
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(name))
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise UsageError(
            f"device {name!r} does not exist: {gpus} CUDA devices found; use --device cpu"
        )
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the precision called `name`; `auto` means bfloat16 if `device` is faster in it.

    For a GPU its generation decides. A CPU is measured, because some CPUs with bfloat16
    instructions (AVX512-bf16 without AMX) are slower with them.
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


def precision_name(precision: torch.dtype) -> str:
    """Return `bf16` or `fp32`, as in the configuration."""
    return "bf16" if precision == torch.bfloat16 else "fp32"


def describe(device: torch.device, precision: torch.dtype) -> str:
    """Describe the hardware in one phrase: `NVIDIA H200, bf16`; `2 × CPU (1 thread), fp32`."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"CPU ({pluralize(torch.get_num_threads(), 'thread')})"
    if world.size() > 1:
        name = f"{world.size()} × {name}"
    return f"{name}, {precision_name(precision)}"


def configure_backends(*, deterministic: bool) -> None:
    """Choose deterministic kernels, or else those that cuDNN measures to be the fastest."""
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        # cuBLAS requires this, and reads it at its first call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Not torch.use_deterministic_algorithms, which imports torch's compiler for a second.
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    # Nothing reads memory before it is written, so that deterministic runs need not fill it first.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Keep freed memory for later tensors instead of returning it to the system.

    By default every large CPU tensor is fresh memory, whose pages the kernel maps and clears at
    first touch: half the time of a training step. With this the process keeps its peak memory, as
    PyTorch's caching allocator does on GPUs. Does nothing without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # a C library other than glibc
        return
    trim_threshold, mmap_max = -1, -4  # malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)


def to_channels_last(module: Module, dims: int) -> Module:
    """Convert the weights of `module` to the layout of `channels_last`, in place; return it."""
    module.to(memory_format=channels_last(dims))  # type: ignore[call-overload]
    return module


def channels_last(dims: int) -> torch.memory_format:
    """Return the memory layout that convolutions over `dims` axes are fastest in."""
    return (torch.channels_last, torch.channels_last_3d)[dims - 2]


def _pick_local_gpu(name: str | None) -> str | None:
    """Return the name of this process's GPU, or `name` if the CPU is used.

    Raises UsageError if there are fewer GPUs than processes.
    """
    if name == "cpu" or not torch.cuda.is_available():
        return name
    if name not in (None, "auto", "cuda"):
        raise UsageError(
            f"device {name!r} is a single device for several processes; use auto, cuda (one GPU "
            "each) or cpu"
        )
    local_rank = int(os.environ.get("LOCAL_RANK", world.rank()))
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise UsageError(
            f"more processes than GPUs on this machine ({gpus}); use --nproc_per_node={gpus}, or "
            "--device cpu"
        )
    torch.cuda.set_device(local_rank)
    return f"cuda:{local_rank}"


@cache
def _bf16_is_faster(threads: int) -> bool:
    """Time a U-Net layer and its gradient on this CPU in both precisions, for about 50 ms.

    Compares the processor time of the fastest repetition, which other work on the machine hardly
    changes. Draws no random numbers.
    """
    precisions = (torch.bfloat16, torch.float32)
    for precision in precisions:
        _time_layer(precision)  # the first call also chooses kernels
    rounds = [[_time_layer(precision) for precision in precisions] for _ in range(6)]
    return min(bf16 for bf16, _ in rounds) < min(fp32 for _, fp32 in rounds)


def _time_layer(precision: torch.dtype) -> float:
    """Return the processor time in seconds of one forward and backward pass."""
    layout = torch.channels_last
    image = torch.ones(4, 64, 32, 32).contiguous(memory_format=layout).requires_grad_()
    weight = torch.ones(64, 64, 3, 3).contiguous(memory_format=layout).requires_grad_()
    begin = time.process_time()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        features = F.conv2d(image, weight, padding=1)
        features = F.batch_norm(features, None, None, training=True)
        features = F.leaky_relu(features)
    torch.autograd.backward(features.float().sum())
    return time.process_time() - begin
