"""Optimizers that skip a step whose loss or gradient is not finite, without asking the device."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from crkd_cli.config import TrainConfig
from crkd_cli.errors import CrkdError
from crkd_cli.schedules import multistep, poly

# What is kept for every parameter.
SLOTS = {
    "sgd": ("momentum",),
    "nesterov": ("momentum",),
    "adamw": ("mean", "square", "steps"),
}


class GuardedOptimizer:
    """SGD with (Nesterov) momentum or AdamW, with weight decay, over a method's parameters.

    A step whose loss or gradient norm is not finite changes neither the weights nor the optimizer's
    state nor the method's buffers (batch norm statistics, class shares). Skipped steps are counted
    on the device and read when the loop logs. Nothing here waits for the device, and every tensor
    keeps its memory, so that a step can be captured as a CUDA graph.

    The updates are torch's functions: its optimizer classes would import its compiler, which takes
    a second at the start of every run.

    Before every step, set `lr`, and call `remember` before its forward passes.
    """

    def __init__(self, method: nn.Module, train: TrainConfig) -> None:
        self._parameters = [p for p in method.parameters() if p.requires_grad]
        self._buffers = list(method.buffers())
        self._remembered = [buffer.clone() for buffer in self._buffers]
        self._train = train
        self._state = {
            slot: [_zeros(slot, parameter) for parameter in self._parameters]
            for slot in SLOTS[train.optimizer]
        }
        device = self._parameters[0].device
        # Kernels on a GPU read the learning rate in float32; on a CPU float64 is exact.
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        self.lr = torch.zeros((), dtype=dtype, device=device)
        self._skipped = torch.zeros((), device=device)
        self._streak = torch.zeros((), device=device)
        self._worst_streak = torch.zeros((), device=device)

    def remember(self) -> None:
        """Copy the buffers; a step that is skipped restores them."""
        if self._buffers:
            torch._foreach_copy_(self._remembered, self._buffers)

    @torch.no_grad()
    def step(self, loss: Tensor) -> Tensor:
        """Apply the gradients of `loss`, clear them, and return their norm."""
        trained = [i for i, p in enumerate(self._parameters) if p.grad is not None]
        parameters: list[Tensor] = [self._parameters[i] for i in trained]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        skip = ~torch.isfinite(norm + loss.detach())
        state = {slot: [values[i] for i in trained] for slot, values in self._state.items()}
        self._update(parameters, gradients, state, skip.float())
        for parameter in parameters:
            parameter.grad = None
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
        return {**self._state, "skipped": self._skipped, "streak": self._streak}

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
        for slot, values in self._state.items():
            for value, saved in zip(values, state[slot], strict=True):
                value.copy_(saved)
        self._skipped.copy_(state["skipped"])
        self._streak.copy_(state["streak"])

    def _update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        state: dict[str, list[Tensor]],
        skip: Tensor,
    ) -> None:
        """Change `parameters` and their state in place, unless `skip` is 1.

        torch's fused kernels leave everything as it is there; GradScaler relies on that, too.
        """
        common: dict[str, Any] = {
            "lr": self.lr,
            "weight_decay": self._train.weight_decay,
            "maximize": False,
            "fused": True,
            "found_inf": skip,
        }
        if self._train.optimizer == "adamw":
            adamw(
                parameters,
                gradients,
                state["mean"],
                state["square"],
                [],
                state["steps"],
                amsgrad=False,
                beta1=self._train.momentum,
                beta2=0.999,
                eps=1e-8,
                **common,
            )
            return
        momentum: list[Tensor | None] = [*state["momentum"]]
        sgd(
            parameters,
            gradients,
            momentum,
            momentum=self._train.momentum,
            dampening=0.0,
            nesterov=self._train.optimizer == "nesterov",
            **common,
        )

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


def _zeros(slot: str, parameter: nn.Parameter) -> Tensor:
    if slot == "steps":
        return torch.zeros((), device=parameter.device)
    return torch.zeros_like(parameter)
