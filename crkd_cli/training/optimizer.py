"""Optimizers that change nothing in a step whose loss or gradient is not finite, without asking the device for it."""

from typing import Any

import torch
from torch import Tensor, nn

from crkd_cli.config import TrainConfig

# What torch keeps for every parameter, by the name it has in a checkpoint.
_MOMENTUM = {"momentum": "momentum_buffer"}
SLOTS = {
    "sgd": _MOMENTUM,
    "nesterov": _MOMENTUM,
    "adamw": {"mean": "exp_avg", "square": "exp_avg_sq", "steps": "step"},
}


class GuardedOptimizer:
    """SGD with momentum (plain or Nesterov's) or AdamW, with weight decay, over a method's parameters.

    A step whose loss or gradient norm is not finite changes neither weights, momentum nor buffers (batch norm's statistics,
    class shares). Such steps are counted on the device and read when the loop logs. `remember` comes before the forward passes.
    """

    def __init__(self, method: nn.Module, train: TrainConfig) -> None:
        self._parameters = [p for p in method.parameters() if p.requires_grad]
        self._buffers = _joined(list(method.buffers()))
        self._before = [flat.clone() for flat in self._buffers]
        self._inner = _inner(self._parameters, train)
        self._slots = SLOTS[train.optimizer]
        for parameter in self._parameters:
            # Zeros from the start: a first step that is skipped would leave torch's own without values.
            for slot in self._slots.values():
                scalar = torch.zeros((), device=parameter.device)
                self._inner.state[parameter][slot] = (
                    scalar if slot == "step" else torch.zeros_like(parameter)
                )
        device = self._parameters[0].device
        self._skipped, self._streak, self._worst = (
            torch.zeros((), device=device) for _ in range(3)
        )

    def remember(self) -> None:
        """Notes the buffers' values, to which the next step goes back if it is not finite."""
        for flat, before in zip(self._buffers, self._before, strict=True):
            before.copy_(flat)

    def step(self, loss: Tensor, lr: float) -> Tensor:
        """Applies the gradients of `loss` with learning rate `lr`, clears them, and gives their norm."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        bad = (~torch.isfinite(norm + loss.detach())).float()
        self._inner.param_groups[0]["lr"] = lr
        self._inner.found_inf = bad  # type: ignore[attr-defined]    # the fused kernels' own switch, as GradScaler uses it
        self._inner.step()
        self._inner.zero_grad()
        keep = bad > 0
        for flat, before in zip(self._buffers, self._before, strict=True):
            flat.copy_(torch.where(keep, before, flat))
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
        slots = {
            name: [self._inner.state[p][slot] for p in self._parameters]
            for name, slot in self._slots.items()
        }
        return {**slots, "skipped": self._skipped, "streak": self._streak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, slot in self._slots.items():
            for parameter, value in zip(self._parameters, state[name], strict=True):
                self._inner.state[parameter][slot].copy_(value)
        self._skipped.copy_(state["skipped"])
        self._streak.copy_(state["streak"])


def _joined(buffers: list[Tensor]) -> list[Tensor]:
    """Makes the buffers parts of one tensor a type, and gives these: a GPU then guards a hundred in the time of one."""
    joined = []
    for kind in dict.fromkeys(buffer.dtype for buffer in buffers):
        alike = [buffer for buffer in buffers if buffer.dtype == kind]
        joined.append(torch.cat([buffer.flatten() for buffer in alike]))
        for buffer, part in zip(
            alike, torch.split(joined[-1], [buffer.numel() for buffer in alike]), strict=True
        ):
            buffer.data = part.view(buffer.shape)
    return joined


def _inner(parameters: list[nn.Parameter], train: TrainConfig) -> torch.optim.Optimizer:
    decay = train.weight_decay
    if train.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, lr=0.0, betas=(train.momentum, 0.999), weight_decay=decay, fused=True
        )
    nesterov = train.optimizer == "nesterov"
    return torch.optim.SGD(
        parameters,
        lr=0.0,
        momentum=train.momentum,
        weight_decay=decay,
        nesterov=nesterov,
        fused=True,
    )
