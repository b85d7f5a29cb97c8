"""The processes of a run that torchrun started, and the collectives between them.

With a single process every function returns its input at no cost.

Every process holds an equal, contiguous part of the joint batch and computes the same loss, that of
the joint batch: its sums run over all processes. DistributedDataParallel then averages N gradients
of this one loss, each of which covers only the process's own part of the tensors exchanged. The
backward pass of a collective therefore returns the gradient of the process's own part times N, and
the average over the processes is exact.
"""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

S = TypeVar("S", Tensor, range)
T = TypeVar("T")
# The environment variable that `crkd train --parallel` sets for its runs.
RUNS = "_CRKD_PARALLEL_RUNS"


def size() -> int:
    """Return N, the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, counted from 0. Process 0 writes and reports."""
    return dist.get_rank() if size() > 1 else 0


def runs() -> int:
    """Return how many runs `crkd train --parallel` trains at once, this one included; else 1."""
    return int(os.environ.get(RUNS, "1"))


def shard(joint: S) -> S:
    """Return this process's part of `joint`, cut along the first axis; N must divide its length."""
    if size() == 1:
        return joint
    length = len(joint) // size()
    return joint[length * rank() : length * (rank() + 1)]


def strided_shard(cases: Sequence[T]) -> Sequence[T]:
    """Return every N-th case, starting at this process's rank; N need not divide their number."""
    return cases[rank() :: size()]


def all_gather(x: Tensor) -> Tensor:
    """Concatenate x [B, …] of all processes, in rank order, to [N·B, …]. Differentiable.

    All processes must pass equal shapes.
    """
    if size() == 1:
        return x
    joint: Tensor = _AllGather.apply(x)  # type: ignore[no-untyped-call]
    return joint


def all_sum(*xs: Tensor) -> tuple[Tensor, ...]:
    """Sum each of `xs` over the processes, in float32 and in one collective. Differentiable."""
    if size() == 1:
        return xs
    flat = torch.cat([x.float().flatten() for x in xs])
    sums = torch.split(all_gather(flat.unsqueeze(0)).sum(0), [x.numel() for x in xs])
    return tuple(total.view(x.shape) for total, x in zip(sums, xs, strict=True))


def all_mean(x: Tensor) -> Tensor:
    """Average x over the processes, with equal weights. Differentiable."""
    return x if size() == 1 else all_sum(x)[0] / size()


def broadcast(x: Tensor) -> Tensor:
    """Copy process 0's x into every process's x, in place, and return it. Shapes must be equal."""
    if size() > 1:
        dist.broadcast(x, 0)
    return x


def gather_results(results: list[T]) -> list[T]:
    """Gather the results for the cases of every `strided_shard`, in the order of the cases.

    Every process gets all of them.
    """
    if size() == 1:
        return results
    shards: list[Any] = [None] * size()
    dist.all_gather_object(shards, results)
    joint: list[Any] = [None] * sum(map(len, shards))
    for number, shard_results in enumerate(shards):
        joint[number :: size()] = shard_results
    return joint


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return shard(gradient) * size()
