"""Several processes for one run, as torchrun starts them: joining, agreeing on a stop, and the end of a process.

Everything here does nothing, at no cost, where there is one process.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from crkd_cli import world
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.methods.base import Method
from crkd_cli.models.networks.base import Decoder, Network

PATIENCE = timedelta(hours=2)  # for a process that is busy alone: process 0 while it validates
_store: Any = None  # what the processes share besides tensors; outlives the group


@contextmanager
def process_group() -> Iterator[None]:
    """Inside, the processes of this run are one `world`. Raises UsageError where the environment is not torchrun's, and
    CrkdError where another process ended.
    """
    global _store
    try:
        store, rank, size = next(iter(rendezvous("env://")))
        _store = PrefixStore("crkd", store)
        # The processor's tensors go through gloo beside the GPUs' through NCCL: a stop is agreed on without a GPU.
        backend = (
            "cpu:gloo,cuda:nccl"
            if torch.cuda.is_available() and dist.is_nccl_available()
            else "gloo"
        )
        dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        what = str(error).splitlines()[0]
        raise UsageError(
            f"WORLD_SIZE is set, but no processes are found ({what}); start with torchrun, or unset it"
        ) from None
    try:
        yield
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise CrkdError("another process of this command ended before its work was done") from None
    # Not after an error: it would wait for those who wait for this process.
    dist.destroy_process_group()


def is_lost_process(error: Exception) -> bool:
    """Whether `error` says that another process cannot be reached any more."""
    return world.size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


def claim_error_report() -> bool:
    """True for the first process of the run that asks, so that an error which several meet is told once."""
    try:
        return _store is None or bool(_store.add("told", 1) == 1)
    except RuntimeError:  # the store went with the process that held it
        return True


def exit_process(code: int) -> NoReturn:
    """Ends this process at once: threads that still hold tensors of an exchange would crash an interpreter that closes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def data_parallel(method: Method) -> Callable[..., dict[str, Tensor]]:
    """(batch, step) → losses; backward from them leaves the gradient of the joint batch in every process."""
    if world.size() == 1:
        return method
    # The student learns at every step; what a method holds besides may rest in some phases and gets no gradient then.
    others = {
        name
        for name, p in method.named_parameters()
        if p.requires_grad and not name.startswith("student.")
    }
    # In channels_last the strides of a 1-wide kernel have several names.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(method, find_unused_parameters=bool(others))


def sync_batch_norm(method: Method) -> Method:
    """On GPUs, the batch norm of networks and further decoders takes its statistics over the joint batch; names of weights stay.

    A projection needs nothing: it sees the joint samples in every process.
    On CPUs, for which torch has no such layer, training normalizes over each process's part; process 0's averages are kept.
    """
    if world.size() > 1 and next(method.parameters()).device.type == "cuda":
        for part in [
            module for module in method.modules() if isinstance(module, (Network, Decoder))
        ]:
            nn.SyncBatchNorm.convert_sync_batchnorm(part)  # type: ignore[no-untyped-call]    # in place
    return method


def check_divisible(name: str, batch: int) -> None:
    """Raises UsageError if a joint batch of `batch` cannot be split evenly."""
    size = world.size()
    if batch % size:
        raise UsageError(
            f"{name} = {batch} cannot be split evenly among {size} processes; "
            f"start another number of them, or use --set {name}={-(-batch // size) * size}"
        )


def check_same_step(step: int, what: str) -> None:
    """Raises UsageError if the processes do not stand at the same step: they do not see the same `what`."""
    steps = world.all_gather(torch.tensor([step]))
    if (steps != step).any():
        raise UsageError(
            f"the processes do not see the same {what}; it must lie on a disk that all machines share"
        )


class Agreement:
    """The highest number that any process put in: told at once where there is one, else a step later, without waiting."""

    def __init__(self) -> None:
        self._running: tuple[Tensor, Any] | None = None

    def __call__(self, number: int) -> int:
        if world.size() == 1:
            return number
        agreed = self.finish()
        highest = torch.tensor(number)
        self._running = highest, dist.all_reduce(highest, dist.ReduceOp.MAX, async_op=True)
        return agreed

    def barrier(self) -> None:
        """Waits until all processes are here."""
        self(0)
        self.finish()

    def finish(self) -> int:
        """Waits for what is on its way; gives what the processes have agreed on."""
        running, self._running = self._running, None
        if running is None:
            return 0
        highest, work = running
        work.wait()
        return int(highest)
