"""The processes of a run that torchrun started: which one this is, and what they exchange. Alone, everything here is free.

Every process holds an equal, contiguous part of the joint batch and computes the loss of the joint batch: sums run over all
processes. DistributedDataParallel then averages N gradients of one and the same loss, each of which knows only its own part of
what was exchanged; so the gradient of an exchange is the own part's, times N, and the average is exact.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

S = TypeVar("S", Tensor, range)
T = TypeVar("T")


def size() -> int:
    """N, the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0; process 0 writes and reports."""
    return dist.get_rank() if size() > 1 else 0


def shard(joint: S) -> S:
    """This process's part of what there is for the joint batch, cut along the first axis."""
    if size() == 1:
        return joint
    own = len(joint) // size()
    return joint[own * rank() : own * (rank() + 1)]


def all_gather(x: Tensor) -> Tensor:
    """x [B, …] of every process, of equal shapes → [N·B, …], in their order. Differentiable (see above)."""
    if size() == 1:
        return x
    joint: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return joint


def all_sum(*xs: Tensor) -> tuple[Tensor, ...]:
    """Each of xs summed over the processes, in float32 and in one exchange. Differentiable (see above)."""
    if size() == 1:
        return xs
    flat = torch.cat([x.float().flatten() for x in xs])
    sums = torch.split(all_gather(flat.unsqueeze(0)).sum(0), [x.numel() for x in xs])
    return tuple(one.view(x.shape) for one, x in zip(sums, xs, strict=True))


def all_mean(x: Tensor) -> Tensor:
    """Mean of the processes' x, all of which count alike. Differentiable (see above)."""
    return x if size() == 1 else all_sum(x)[0] / size()


def broadcast(x: Tensor) -> Tensor:
    """Process 0's x, on every process. Shapes must be equal."""
    if size() > 1:
        dist.broadcast(x, 0)
    return x


def strided_shard(cases: Sequence[T]) -> Sequence[T]:
    """This process's share of cases that need not divide evenly: every N-th one."""
    return cases[rank() :: size()]


def gather_results(results: list[T]) -> list[T]:
    """The results of all shares in the order of the cases, on every process."""
    if size() == 1:
        return results
    shares: list[Any] = [None] * size()
    dist.all_gather_object(shares, results)
    joint: list[Any] = [None] * sum(map(len, shares))
    for number, own in enumerate(shares):
        joint[number :: size()] = own
    return joint


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return shard(gradient) * size()
