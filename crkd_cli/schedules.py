"""Functions of the step alone: learning rate and ramps."""

import math
from collections.abc import Sequence


def poly(step: float, steps: float, power: float = 0.9) -> float:
    """(1 − t/T)^power: the factor of the learning rate at step t of T."""
    return math.pow(1.0 - min(step, steps) / steps, power)


def multistep(step: int, steps: int, milestones: Sequence[float], factor: float = 0.1) -> float:
    """`factor` to the number of milestones, as shares of `steps`, that step t has reached (torch's MultiStepLR)."""
    return math.pow(factor, sum(step >= round(share * steps) for share in milestones))


def sigmoid_ramp(step: float, length: float) -> float:
    """exp(−5 (1 − min(t/T_r, 1))²): from 0.0067 at step 0 to 1 from step T_r on (Laine and Aila, ICLR 2017)."""
    if length <= 0:
        return 1.0
    return math.exp(-5.0 * (1.0 - min(step / length, 1.0)) ** 2)
