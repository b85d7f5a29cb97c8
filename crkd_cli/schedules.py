"""Learning-rate schedules and ramps as functions of the step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def poly(step: float, steps: float, power: float = 0.9) -> float:
    """Return (1 − t/T)^power, the factor of the learning rate at step t of T."""
    return math.pow(1.0 - min(step, steps) / steps, power)


def multistep(step: int, steps: int, milestones: Sequence[float], factor: float = 0.1) -> float:
    """Return `factor` to the power of the number of milestones that `step` has reached.

    The milestones are shares of `steps`; the values are those of torch's MultiStepLR.
    """
    return math.pow(factor, sum(step >= round(share * steps) for share in milestones))


def sigmoid_ramp(step: Tensor | float, length: float) -> Tensor | float:
    """Return exp(−5 (1 − min(t/T_r, 1))²), which rises from 0.0067 at t = 0 to 1 from t = T_r on.

    Of a tensor, computed on its device. Laine and Aila, Temporal Ensembling for Semi-Supervised
    Learning, ICLR 2017.
    """
    if length <= 0:
        return 1.0
    if isinstance(step, Tensor):
        return torch.exp(-5.0 * (1.0 - (step / length).clamp(max=1.0)) ** 2)
    return math.exp(-5.0 * (1.0 - min(step / length, 1.0)) ** 2)
