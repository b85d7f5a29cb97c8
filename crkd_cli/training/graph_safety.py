"""Finds out whether a method can be captured in a CUDA graph.

A graph repeats the same kernels with the same arguments in the same memory. Whatever the host
decides while they are recorded is fixed: it may not depend on data, on the step, or on chance.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crkd_cli.data.batch import Batch
from crkd_cli.methods.base import Method

# Operations that make the host wait for the device, by name.
_READS = {
    "_local_scalar_dense": "reads a value from the device (as .item(), float() and if do)",
    "equal": "reads a value from the device (torch.equal)",
    "nonzero": "has a result whose shape depends on data (nonzero)",
    "masked_select": "has a result whose shape depends on data (masked_select)",
    "_unique2": "has a result whose shape depends on data (unique)",
    "bincount": "has a result whose shape depends on data (bincount)",
    "repeat_interleave": "has a result whose shape depends on data (repeat_interleave)",
    "lift_fresh": "copies host data to the device (as torch.tensor() does)",
}
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
_COPIES = ("_to_copy", "copy_")

Operation = tuple[str, list[str]]  # name, arguments (of tensors, their shapes)


class NotCapturableError(RuntimeError):
    """An operation cannot be part of a CUDA graph."""


class OperationRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operations; raises NotCapturableError at one that cannot be captured."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = tree_leaves((args, kwargs))
        check_operation(func, arguments)
        described = [_describe(argument) for argument in arguments]
        self.operations.append((str(func), described))
        return func(*args, **(kwargs or {}))


def find_obstacle(
    method: Method, batch: Batch, number: Tensor, autocast: torch.autocast
) -> str | None:
    """Say why a step of `method` on `batch` cannot be captured; None if it can.

    Runs a copy of the method twice, as in step `number` and in the next one, in its present phase.
    """
    try:
        first = _record(method, batch, number, autocast)
        second = _record(method, batch, number + 1, autocast)
    except NotCapturableError as error:
        return str(error)
    if [name for name, _ in first] != [name for name, _ in second]:
        return "the next step has other operations"
    for (name, arguments), (_, next_arguments) in zip(first, second, strict=True):
        if arguments != next_arguments:
            return f"{name} has other arguments in the next step"
    return None


def check_operation(func: Any, arguments: list[Any]) -> None:
    """Raise NotCapturableError if the operation makes the host wait, or copies from or to it."""
    name = func.overloadpacket.__name__
    if name in _READS:
        raise NotCapturableError(f"it {_READS[name]}")
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if name in _INDEXING and any(tensor.dtype == torch.bool for tensor in tensors[1:]):
        raise NotCapturableError("it indexes with a mask, so that shapes depend on data")
    if name in _COPIES and _crosses_devices(arguments):
        raise NotCapturableError("it copies between host and device")


def _record(
    method: Method, batch: Batch, number: Tensor, autocast: torch.autocast
) -> list[Operation]:
    method = copy.deepcopy(method)
    recorder = OperationRecorder()
    with recorder:
        for _ in range(method.updates):
            with autocast:
                losses = method(batch, number)
            torch.autograd.backward(losses["total"])
        method.after_step(number)
    return recorder.operations


def _describe(argument: Any) -> str:
    if isinstance(argument, Tensor):
        return f"{argument.dtype} {list(argument.shape)}"
    return repr(argument)


def _crosses_devices(arguments: list[Any]) -> bool:
    devices = set()
    for argument in arguments:
        if isinstance(argument, Tensor):
            devices.add(argument.device.type)
        elif isinstance(argument, torch.device):
            devices.add(argument.type)
    return len(devices) > 1
