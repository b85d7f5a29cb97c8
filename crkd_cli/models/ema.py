"""A network whose weights are the moving average of another's."""

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

ParameterPairs = list[tuple[Tensor, Tensor]]


class Ema(nn.Module):
    """Averages weights: θ' ← a θ' + (1 − a) θ with a = min(1 − 1/(t + 1), decay).

    t counts from 0, so the first update copies (Tarvainen and Valpola, NeurIPS 2017).

    Only parameters are averaged. In training the network normalizes by the batch, so the running
    statistics of its batch norm come from the images that it has seen itself, with its own weights.
    """

    def __init__(self, network: nn.Module, decay: float, *, dropout: bool) -> None:
        """Copy `network`; with `dropout`, the average uses dropout in training as well."""
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay, self.dropout = decay, dropout
        self.train(network.training)
        # Cached per network: walking the modules takes as long as launching a layer's kernels.
        self._pairs: WeakKeyDictionary[nn.Module, ParameterPairs] = WeakKeyDictionary()

    @torch.no_grad()
    def update(self, network: nn.Module, step: Tensor | int) -> None:
        """Move the average towards `network` after optimizer step `step` (from 0)."""
        # 1 − a. A tensor, so that the value is not fixed when a CUDA graph is captured.
        device = next(self.network.parameters()).device
        count = torch.as_tensor(step, dtype=torch.float64, device=device) + 1.0
        weight = (1.0 - (1.0 - 1.0 / count).clamp(max=self.decay)).float()
        if network not in self._pairs:
            parameters = zip(self.network.parameters(), network.parameters(), strict=True)
            self._pairs[network] = list(parameters)
        pairs = self._pairs[network]
        averages, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        torch._foreach_lerp_(averages, targets, [weight] * len(averages))

    def train(self, mode: bool = True) -> "Ema":
        """Set training mode, in which batch norm uses the batch and dropout only if asked for."""
        super().train(mode and self.dropout)
        for module in self.network.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Ema":
        self._pairs.clear()  # .to() and similar calls may replace the tensors
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pairs": WeakKeyDictionary()}  # a copy has its own tensors
