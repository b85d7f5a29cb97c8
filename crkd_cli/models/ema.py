"""A network whose weights are the moving average of another's."""

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Pairs = list[tuple[Tensor, Tensor]]


class Ema(nn.Module):
    """θ' ← a θ' + (1 − a) θ with a = min(1 − 1/(t + 1), decay), t counted from 0: the first update copies
    (Tarvainen and Valpola, NeurIPS 2017).

    Weights alone are averaged. In training the network normalizes by the batch, so the running statistics of
    its batch norm are those of the images that it has seen itself, under its own weights.
    """

    def __init__(self, network: nn.Module, decay: float, *, dropout: bool) -> None:
        """`dropout`: in training the average drops features too, as its student does."""
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay, self.dropout = decay, dropout
        self.train(network.training)
        # By network: walking through the modules takes as long as launching a layer's kernels.
        self._pairs: WeakKeyDictionary[nn.Module, Pairs] = WeakKeyDictionary()

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the average towards `network` after optimizer step `step` (from 0)."""
        weight = 1.0 - min(1.0 - 1.0 / (step + 1), self.decay)
        if network not in self._pairs:
            self._pairs[network] = list(
                zip(self.network.parameters(), network.parameters(), strict=True)
            )
        pairs = self._pairs[network]
        torch._foreach_lerp_([mine for mine, _ in pairs], [theirs for _, theirs in pairs], weight)

    def train(self, mode: bool = True) -> "Ema":
        super().train(mode and self.dropout)
        for module in self.network.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Ema":
        self._pairs.clear()  # .to() and its like may put other tensors in the place of these
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]    # torch's own
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pairs": WeakKeyDictionary()}  # a copy has tensors of its own
