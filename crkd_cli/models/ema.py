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

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Moves the average towards `network` after optimiser step `step` (from 0)."""
        weight = 1.0 - min(1.0 - 1.0 / (step + 1), self.decay)
        mine, theirs = self._tensors(self.network), self._tensors(network)
        torch._foreach_lerp_([t for t in mine if t.is_floating_point()], [t for t in theirs if t.is_floating_point()], weight)
        for counter, value in zip(mine, theirs, strict=True):
            if not counter.is_floating_point():
                counter.copy_(value)

    def train(self, mode: bool = True) -> "Ema":
        """Stays in evaluation mode if not `stochastic`: then it neither drops features nor updates its statistics."""
        return super().train(mode and self.stochastic)

    @staticmethod
    def _tensors(network: nn.Module) -> list[Tensor]:
        return [*network.parameters(), *network.buffers()]
