"""A network that is the moving average of another."""

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Pairs = list[tuple[Tensor, Tensor]]


class Ema(nn.Module):
    """θ' ← a θ' + (1 − a) θ with a = min(1 − 1/(t + 1), decay), t counted from 0: the first update copies
    (Tarvainen and Valpola, NeurIPS 2017). Buffers (batch norm's statistics) are averaged with the parameters.
    """

    def __init__(self, network: nn.Module, decay: float, *, stochastic: bool = False) -> None:
        """`stochastic`: while the method trains, it drops features and normalises by the batch, as its student does."""
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay, self.stochastic = decay, stochastic
        self.train(network.training)
        # By network: walking through the modules takes as long as launching a layer's kernels.
        self._pairs: WeakKeyDictionary[nn.Module, tuple[Pairs, Pairs]] = WeakKeyDictionary()

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Moves the average towards `network` after optimiser step `step` (from 0)."""
        weight = 1.0 - min(1.0 - 1.0 / (step + 1), self.decay)
        if network not in self._pairs:
            pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
            averaged = [pair for pair in pairs if pair[0].is_floating_point()]
            self._pairs[network] = averaged, [pair for pair in pairs if not pair[0].is_floating_point()]
        averaged, counters = self._pairs[network]
        torch._foreach_lerp_([mine for mine, _ in averaged], [theirs for _, theirs in averaged], weight)
        if counters:
            torch._foreach_copy_([mine for mine, _ in counters], [theirs for _, theirs in counters])

    def train(self, mode: bool = True) -> "Ema":
        """Stays in evaluation mode if not `stochastic`: then it neither drops features nor updates its statistics."""
        return super().train(mode and self.stochastic)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Ema":
        self._pairs.clear()    # .to() and its like put other buffers in the place of these
        super()._apply(fn, recurse)    # type: ignore[no-untyped-call]    # torch's own
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pairs": WeakKeyDictionary()}    # a copy has tensors of its own


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
