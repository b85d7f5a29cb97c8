"""Loss terms and timing of the steps between two log lines."""

import math
import time

import torch
from torch import Tensor

from crkd_cli import world


class StepStats:
    """Collects the scalars of each step without reading them from the device."""

    def __init__(self) -> None:
        self.seconds_waited = 0.0  # for data, in the steps of earlier log lines
        self._restart(time.monotonic())

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Add the scalars of one update."""
        for name, value in scalars.items():
            self._scalars.setdefault(name, []).append(value.detach())

    def end_step(self, waited: float) -> None:
        """Count a step, for whose data the loop waited `waited` seconds."""
        self._steps += 1
        self._waited += waited

    def nonfinite(self) -> list[str]:
        """Return the names of the scalars whose latest value is not finite (reads the device)."""
        return [name for name, values in self._scalars.items() if not values[-1].isfinite()]

    def collect(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return (means, rates) since the last call and start over (reads the device).

        The means are over the finite values of each scalar, NaN if there is none, and over all
        processes.
        """
        now = time.monotonic()
        means = torch.stack([_finite_mean(values) for values in self._scalars.values()])
        by_name = dict(zip(self._scalars, world.all_mean(means).tolist(), strict=True))
        seconds = max(now - self._begin, 1e-9)
        rates = {
            "steps_per_second": self._steps / seconds,
            "waiting": self._waited / seconds,  # share of the time spent waiting for data
        }
        self.seconds_waited += self._waited
        self._restart(now)
        return by_name, rates

    def _restart(self, now: float) -> None:
        self._scalars: dict[str, list[Tensor]] = {}
        self._steps = 0
        self._waited = 0.0
        self._begin = now


def _finite_mean(values: list[Tensor]) -> Tensor:
    stacked = torch.stack(values).float()
    return stacked.masked_fill(~stacked.isfinite(), math.nan).nanmean()
