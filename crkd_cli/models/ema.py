"""A network that is the moving average of another."""

import copy

import torch
from torch import Tensor, nn


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
        self._pairs: list[list[tuple[Tensor, Tensor]]] | None = None

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Moves the average towards `network`, the same at every call, after optimiser step `step` (from 0)."""
        weight = 1.0 - min(1.0 - 1.0 / (step + 1), self.decay)
        if self._pairs is None:    # kept: walking through the modules takes as long as launching a layer's kernels
            pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
            self._pairs = [[pair for pair in pairs if pair[0].is_floating_point() is real] for real in (True, False)]
        averaged, counters = self._pairs
        torch._foreach_lerp_([mine for mine, _ in averaged], [theirs for _, theirs in averaged], weight)
        if counters:
            torch._foreach_copy_([mine for mine, _ in counters], [theirs for _, theirs in counters])

    def train(self, mode: bool = True) -> "Ema":
        """Stays in evaluation mode if not `stochastic`: then it neither drops features nor updates its statistics."""
        return super().train(mode and self.stochastic)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
