"""One training step: from a batch to updated weights, without waiting for the device."""

import torch
from torch import Tensor

from crkd_cli import world
from crkd_cli.config import TrainConfig
from crkd_cli.data.batch import Batch
from crkd_cli.methods.base import Method
from crkd_cli.runtime.distributed import data_parallel
from crkd_cli.runtime.user_method import attribute_errors, check_losses
from crkd_cli.training.batches import step_seed
from crkd_cli.training.graph_safety import find_obstacle
from crkd_cli.training.monitor import label_shares
from crkd_cli.training.optimizer import GuardedOptimizer, learning_rate
from crkd_cli.training.step_stats import StepStats


class TrainingStep:
    """Losses, gradients, update and moving averages of a method.

    A step has two halves: `prepare` sets on the host what changes from step to step, and `run` does
    the same work on the device every time, as long as the method's phase is the same. `run` can
    therefore be captured as a CUDA graph.
    """

    def __init__(
        self,
        method: Method,
        optimizer: GuardedOptimizer,
        config: TrainConfig,
        classes: int,
        precision: torch.dtype,
    ) -> None:
        self.method = method
        self.stats = StepStats()
        self._optimizer, self._config, self._classes = optimizer, config, classes
        self._compute_losses = data_parallel(method)
        self.device = next(method.parameters()).device
        self._bf16 = precision == torch.bfloat16
        self._number = torch.zeros((), dtype=torch.float64, device=self.device)

    def prepare(self, number: int) -> None:
        """Set the number, the learning rate, the method's phase and the seed of the next step."""
        self._number.fill_(number)
        self._optimizer.lr.fill_(learning_rate(self._config, number))
        self.method.phase = self.method.phase_at(number)
        # Dropout, CutMix and sampling depend on the step alone, and differ between processes.
        torch.manual_seed(step_seed(self._config.seed, number) + world.rank())

    def run(self, batch: Batch) -> None:
        """Train on one batch, with as many updates as the method asks for."""
        for _ in range(self.method.updates):
            self._update(batch)
        with attribute_errors(type(self.method)):
            self.method.after_step(self._number)

    def find_obstacle(self, batch: Batch) -> str | None:
        """Say why `run` cannot be captured as a CUDA graph in the present phase; None if it can."""
        return find_obstacle(self.method, batch, self._number, self._autocast())

    def _update(self, batch: Batch) -> None:
        self._optimizer.remember()  # before every update: after_step moves a teacher's statistics
        losses = self._forward(batch)
        torch.autograd.backward(losses["total"])
        norm = self._optimizer.step(losses["total"])
        shares: dict[str, Tensor] = {}
        if "share_1" in losses:
            has_ignored = self.method.task.has_ignored
            shares = label_shares(batch.labeled, self._classes, has_ignored=has_ignored)
        self.stats.add({**losses, **shares, "grad_norm": norm})

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        method_class = type(self.method)
        with self._autocast(), attribute_errors(method_class):
            return check_losses(self._compute_losses(batch, self._number), method_class)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16)
