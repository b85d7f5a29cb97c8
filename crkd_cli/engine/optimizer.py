"""SGD that changes nothing in a step whose loss or gradient is not finite, without asking the device for it."""

from typing import Any

import torch
from torch import Tensor, nn


class GuardedSgd:
    """SGD with momentum and weight decay over a method's parameters.

    A step whose loss or gradient norm is not finite changes neither weights, momentum nor batch-norm statistics. Such steps are
    counted on the device and read when the loop logs.
    """

    def __init__(self, method: nn.Module, momentum: float, weight_decay: float) -> None:
        self._parameters = [p for p in method.parameters() if p.requires_grad]
        self._buffers = list(method.buffers())
        self._before = [b.clone() for b in self._buffers]
        self._sgd = torch.optim.SGD(self._parameters, lr=0.0, momentum=momentum, weight_decay=weight_decay, fused=True)
        for parameter in self._parameters:
            # Zero momentum from the start: a first step that is skipped would leave torch's buffer without values.
            self._sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        device = self._parameters[0].device
        self._skipped, self._streak, self._worst = (torch.zeros((), device=device) for _ in range(3))

    def step(self, loss: Tensor, lr: float) -> Tensor:
        """Applies the gradients of `loss` with learning rate `lr`, clears them, and gives their norm."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        bad = (~torch.isfinite(norm + loss.detach())).float()
        self._sgd.param_groups[0]["lr"] = lr
        self._sgd.found_inf = bad    # type: ignore[attr-defined]    # the fused kernel's own switch, as GradScaler uses it
        self._sgd.step()
        self._sgd.zero_grad()
        keep = bad > 0
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(keep, before, buffer))
            before.copy_(buffer)
        self._skipped += bad
        self._streak = (self._streak + 1.0) * bad
        self._worst = torch.maximum(self._worst, self._streak)
        return norm

    def skipped(self) -> int:
        """Steps skipped so far (reads the device)."""
        return int(self._skipped)

    def worst_streak(self) -> int:
        """The longest row of skipped steps so far (reads the device)."""
        return int(self._worst)

    def state_dict(self) -> dict[str, Any]:
        momentum = [self._sgd.state[p]["momentum_buffer"] for p in self._parameters]
        return {"momentum": momentum, "skipped": self._skipped, "streak": self._streak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for parameter, buffer in zip(self._parameters, state["momentum"], strict=True):
            self._sgd.state[parameter]["momentum_buffer"].copy_(buffer)
        self._skipped.copy_(state["skipped"])
        self._streak.copy_(state["streak"])
        for buffer, before in zip(self._buffers, self._before, strict=True):
            before.copy_(buffer)
