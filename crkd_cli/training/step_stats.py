"""Loss terms and timing of the steps between two log lines."""

import math
import time
from collections import defaultdict

import torch
from torch import Tensor

from crkd_cli import world


class StepStats:
    """Collects the scalars of each step without reading them from the device.

    They are added up in place, so that `add` can be captured in a CUDA graph.
    """

    def __init__(self) -> None:
        self.seconds_waited = 0.0  # for data, in the steps of earlier log lines
        self._totals: dict[tuple[str, ...], _Totals] = {}  # by the names of the scalars
        self._restart(time.monotonic())

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Add the scalars of one update."""
        values = torch.stack([value.detach() for value in scalars.values()]).double()
        names = tuple(scalars)
        if names not in self._totals:
            self._totals[names] = _Totals(values)
        self._totals[names].add(values)

    def end_step(self, waited: float) -> None:
        """Count a step, for whose data the loop waited `waited` seconds."""
        self._steps += 1
        self._waited += waited

    def nonfinite(self) -> list[str]:
        """Return the names of the scalars whose latest value is not finite (reads the device)."""
        nonfinite: dict[str, None] = {}  # ordered, and each name once
        for names, totals in self._totals.items():
            for name, value in zip(names, totals.latest.tolist(), strict=True):
                if not math.isfinite(value):
                    nonfinite[name] = None
        return list(nonfinite)

    def collect(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return (means, rates) since the last call and start over (reads the device).

        The means are over the finite values of each scalar, NaN if there is none, and over all
        processes.
        """
        now = time.monotonic()
        means = self._collect_means()
        seconds = max(now - self._begin, 1e-9)
        rates = {
            "steps_per_second": self._steps / seconds,
            "waiting": self._waited / seconds,  # share of the time spent waiting for data
        }
        self.seconds_waited += self._waited
        self._restart(now)
        return means, rates

    def _collect_means(self) -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, float] = defaultdict(float)
        for names, totals in self._totals.items():
            columns = totals.collect()
            for name, (total, finite, added) in zip(names, columns, strict=True):
                if added:
                    sums[name] += total
                    counts[name] += finite
        means = [sums[name] / counts[name] if counts[name] else math.nan for name in sums]
        return dict(zip(sums, world.all_mean(torch.tensor(means)).tolist(), strict=True))

    def _restart(self, now: float) -> None:
        self._steps = 0
        self._waited = 0.0
        self._begin = now


class _Totals:
    """Running totals of n scalars on their device."""

    def __init__(self, like: Tensor) -> None:
        self.latest = torch.zeros_like(like)  # [n]
        # [3, n]: the sum of the finite values, their number, the number of all values
        self._rows = torch.zeros(3, len(like), dtype=like.dtype, device=like.device)

    def add(self, values: Tensor) -> None:
        finite = values.isfinite()
        self._rows[0] += torch.where(finite, values, 0.0)
        self._rows[1] += finite
        self._rows[2] += 1.0
        self.latest.copy_(values)

    def collect(self) -> list[tuple[float, ...]]:
        """Return the totals of every scalar, and start over (reads the device)."""
        columns = [tuple(column) for column in self._rows.T.tolist()]
        self._rows.zero_()
        self.latest.zero_()
        return columns
