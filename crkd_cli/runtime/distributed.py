"""The processes of one run, as torchrun starts them: joining, stopping together, losing one.

With a single process everything here does nothing, at no cost.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
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
from crkd_cli.paths import output_folder

# How long a collective waits for a process that works alone, such as process 0 while it validates.
TIMEOUT = timedelta(hours=2)
# The key-value store of the processes; it outlives the process group.
_store: Any = None


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes of this run to one `world`.

    Raises UsageError if the environment is not torchrun's, and CrkdError if another process ended.
    """
    try:
        _init_process_group()
    except (ValueError, RuntimeError) as error:
        problem = str(error).splitlines()[0]
        raise UsageError(
            f"WORLD_SIZE is set, but no processes are found ({problem}); start with torchrun, or "
            "unset it"
        ) from None
    try:
        yield
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise CrkdError("another process of this command ended before its work was done") from None
    # Not after an error: this would wait for processes that wait for this one.
    dist.destroy_process_group()


def _init_process_group() -> None:
    global _store
    store, rank, size = next(iter(rendezvous("env://")))
    _store = PrefixStore("crkd", store)
    # CPU tensors go through gloo even on GPUs: agreeing on a stop must not synchronize a GPU.
    has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if has_nccl else "gloo"
    dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=TIMEOUT)


def is_lost_process(error: Exception) -> bool:
    """Whether `error` means that another process can no longer be reached."""
    return world.size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


def claim_error_report() -> bool:
    """Return True in the first process that asks, so that a shared error is reported once."""
    try:
        return _store is None or bool(_store.add("reported", 1) == 1)
    except RuntimeError:  # the process that hosted the store is gone
        return True


def exit_process(code: int) -> NoReturn:
    """End this process without interpreter shutdown.

    Threads that still hold tensors of a collective would crash it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def data_parallel(method: Method) -> Callable[..., dict[str, Tensor]]:
    """Return (batch, step) → losses, whose backward pass yields the gradient of the joint batch."""
    if world.size() == 1:
        return method
    # The student gets a gradient at every step; other networks may rest in some phases.
    has_others = any(
        parameter.requires_grad and not name.startswith("student.")
        for name, parameter in method.named_parameters()
    )
    # In channels_last the strides of a 1-wide kernel are ambiguous.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(method, find_unused_parameters=has_others)


def sync_batch_norm(method: Method) -> Method:
    """Convert the batch norm of networks and further decoders to SyncBatchNorm, on GPUs.

    The names of the weights do not change. A projection needs no conversion: every process passes
    the joint samples through it. On CPUs torch has no SyncBatchNorm: each process normalizes by its
    part of the batch, and the running statistics of process 0 are kept.
    """
    if world.size() > 1 and next(method.parameters()).device.type == "cuda":
        networks = [module for module in method.modules() if isinstance(module, (Network, Decoder))]
        for network in networks:
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return method


def check_divisible(name: str, batch: int) -> None:
    """Raise UsageError if the processes cannot share a joint batch of `batch` items evenly."""
    size = world.size()
    if batch % size:
        raise UsageError(
            f"{name} = {batch} cannot be split evenly among {size} processes; start a different "
            f"number of processes, or use --set {name}={-(-batch // size) * size}"
        )


def check_same_step(step: int, what: str) -> None:
    """Raise UsageError if the processes are at different steps: each sees a different `what`."""
    steps = world.all_gather(torch.tensor([step]))
    if (steps != step).any():
        raise UsageError(
            f"the processes do not see the same {what}; it must be on a disk that all machines "
            "share"
        )


@contextmanager
def joint_output_folder(folder: Path, option: str, *subfolders: str) -> Iterator[None]:
    """Let the processes of this command, and no others, write to `folder` during the block.

    See `crkd_cli.paths.output_folder`. The block must end with a collective.
    """
    with output_folder(folder, option, *subfolders) if world.rank() == 0 else nullcontext():
        # No process writes before the leftovers of earlier ones are removed.
        world.gather_results([])
        yield


class Agreement:
    """Tells every process the highest number that any process passes in, without waiting.

    With several processes, a call returns the result of the previous one.
    """

    def __init__(self) -> None:
        self._pending: tuple[Tensor, Any] | None = None

    def __call__(self, number: int) -> int:
        """Pass in `number`; return the highest number of this call, or of the previous one."""
        if world.size() == 1:
            return number
        agreed = self.finish()
        highest = torch.tensor(number)
        self._pending = highest, dist.all_reduce(highest, dist.ReduceOp.MAX, async_op=True)
        return agreed

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self(0)
        self.finish()

    def finish(self) -> int:
        """Wait for the pending call, if there is one, and return what was agreed on."""
        pending, self._pending = self._pending, None
        if pending is None:
            return 0
        highest, work = pending
        work.wait()
        return int(highest)
