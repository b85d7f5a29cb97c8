"""Optimizers that skip a step whose loss or gradient is not finite, without asking the device."""

from typing import Any

import torch
from torch import Tensor, nn

from crkd_cli.config import TrainConfig
from crkd_cli.errors import CrkdError
from crkd_cli.schedules import multistep, poly

# The state that torch's optimizers keep for every parameter: name in a checkpoint → name in torch.
_MOMENTUM = {"momentum": "momentum_buffer"}
SLOTS = {
    "sgd": _MOMENTUM,
    "nesterov": _MOMENTUM,
    "adamw": {"mean": "exp_avg", "square": "exp_avg_sq", "steps": "step"},
}


class GuardedOptimizer:
    """SGD with (Nesterov) momentum or AdamW, with weight decay, over a method's parameters.

    A step whose loss or gradient norm is not finite changes neither the weights nor the optimizer's
    state nor the method's buffers (batch norm statistics, class shares). Skipped steps are counted
    on the device and read when the loop logs. Nothing here waits for the device, and every tensor
    keeps its memory, so that a step can be captured as a CUDA graph.

    Before every step, set `lr`, and call `remember` before its forward passes.
    """

    def __init__(self, method: nn.Module, train: TrainConfig) -> None:
        self._parameters = [p for p in method.parameters() if p.requires_grad]
        self._buffers = list(method.buffers())
        self._remembered = [buffer.clone() for buffer in self._buffers]
        self._inner = _build_optimizer(self._parameters, train)
        self._slots = SLOTS[train.optimizer]
        self._init_state()
        device = self._parameters[0].device
        # Kernels on a GPU read the learning rate in float32; on a CPU float64 is exact.
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        self.lr = torch.zeros((), dtype=dtype, device=device)
        self._inner.param_groups[0]["lr"] = self.lr
        self._skipped = torch.zeros((), device=device)
        self._streak = torch.zeros((), device=device)
        self._worst_streak = torch.zeros((), device=device)

    def remember(self) -> None:
        """Copy the buffers; a step that is skipped restores them."""
        if self._buffers:
            torch._foreach_copy_(self._remembered, self._buffers)

    def step(self, loss: Tensor) -> Tensor:
        """Apply the gradients of `loss`, clear them, and return their norm."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        skip = ~torch.isfinite(norm + loss.detach())
        # The fused kernels leave everything as it is where this is 1; GradScaler uses it too.
        self._inner.found_inf = skip.float()  # type: ignore[attr-defined]
        self._inner.step()
        self._inner.zero_grad()
        self._restore_buffers(skip)
        self._skipped += skip
        self._streak.add_(1.0).mul_(skip)
        torch.maximum(self._worst_streak, self._streak, out=self._worst_streak)
        return norm

    def skipped(self) -> int:
        """Return the number of skipped steps (reads the device)."""
        return int(self._skipped)

    def worst_streak(self) -> int:
        """Return the largest number of steps skipped in a row (reads the device)."""
        return int(self._worst_streak)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every parameter, in their order, and the counters."""
        state: dict[str, Any] = {
            name: [self._inner.state[p][slot] for p in self._parameters]
            for name, slot in self._slots.items()
        }
        return {**state, "skipped": self._skipped, "streak": self._streak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy the values of `state_dict` into this optimizer.

        Raises CrkdError if they are those of another optimizer.
        """
        try:
            self._copy(state)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            problem = " ".join(f"{type(error).__name__}: {error}".split())
            raise CrkdError(
                f"the checkpoint's optimizer state is damaged ({problem}); give another folder "
                "with --out"
            ) from None

    def _copy(self, state: dict[str, Any]) -> None:
        for name, slot in self._slots.items():
            for parameter, value in zip(self._parameters, state[name], strict=True):
                self._inner.state[parameter][slot].copy_(value)
        self._skipped.copy_(state["skipped"])
        self._streak.copy_(state["streak"])

    def _init_state(self) -> None:
        """Fill the state with zeros; torch leaves it uninitialized if the first step is skipped."""
        for parameter in self._parameters:
            state = self._inner.state[parameter]
            for slot in self._slots.values():
                if slot == "step":
                    state[slot] = torch.zeros((), device=parameter.device)
                else:
                    state[slot] = torch.zeros_like(parameter)

    def _restore_buffers(self, skip: Tensor) -> None:
        for buffer, remembered in zip(self._buffers, self._remembered, strict=True):
            torch.where(skip, remembered, buffer, out=buffer)


def learning_rate(train: TrainConfig, step: int) -> float:
    """Return the learning rate of `step`."""
    if train.lr_schedule == "poly":
        return train.lr * poly(step, train.lr_horizon * train.steps, train.lr_power)
    if train.lr_schedule == "step":
        return train.lr * multistep(step, train.steps, train.lr_milestones)
    return train.lr


def _build_optimizer(parameters: list[nn.Parameter], train: TrainConfig) -> torch.optim.Optimizer:
    if train.optimizer == "adamw":
        adamw = torch.optim.AdamW(
            parameters,
            lr=0.0,
            betas=(train.momentum, 0.999),
            weight_decay=train.weight_decay,
            fused=True,
            capturable=parameters[0].device.type == "cuda",
        )
        # It would warn of every use outside a CUDA graph, which is intended here.
        adamw._warned_capturable_if_run_uncaptured = True
        return adamw
    return torch.optim.SGD(
        parameters,
        lr=0.0,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        nesterov=train.optimizer == "nesterov",
        fused=True,
    )
