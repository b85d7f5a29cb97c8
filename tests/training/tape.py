"""CUDA graphs imitated on a CPU, operation by operation.

Like a graph, a tape repeats the recorded operations with the recorded arguments: numbers are fixed,
tensors are read from and written to the memory that they had, and the host decides nothing. Random
numbers come from the generator in its present state.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crkd_cli.training.graph_safety import check_operation


class TapeCapturer:
    """Captures tapes, and counts them."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        yield

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        tape = Tape()
        generator = torch.get_rng_state()
        with tape:
            work()
        tape.undo()
        torch.set_rng_state(generator)
        self.captures += 1

        def replay() -> None:
            tape.replay()
            self.replays += 1

        return replay


class Tape(TorchDispatchMode):
    """Records operations while they run. Raises NotCapturableError at one that a GPU refuses."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, Any]] = []  # they keep their tensors alive
        self._created: set[int] = set()  # addresses of the memory that belongs to the tape
        self._originals: dict[int, tuple[Any, Any]] = {}  # address → memory, its first content

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = tree_leaves((args, kwargs))
        check_operation(func, inputs)
        addresses = {address(tensor) for tensor in inputs if isinstance(tensor, Tensor)}
        for tensor in inputs:
            if isinstance(tensor, Tensor):
                self._remember(tensor)
        result = func(*args, **kwargs)
        self._operations.append((func, args, kwargs, result))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and address(tensor) not in addresses:
                self._created.add(address(tensor))
        return result

    def undo(self) -> None:
        """Restore what the recorded operations have changed: capturing runs nothing."""
        for memory, content in self._originals.values():
            memory.copy_(content)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, recorded in self._operations:
            inputs = {address(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            results = tree_leaves(func(*args, **kwargs))
            for target, result in zip(tree_leaves(recorded), results, strict=True):
                if isinstance(target, Tensor) and address(target) not in inputs:
                    target.copy_(result)

    def _remember(self, tensor: Tensor) -> None:
        key = address(tensor)
        if key not in self._created and key not in self._originals:
            memory = tensor.untyped_storage()
            self._originals[key] = memory, memory.clone()


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
