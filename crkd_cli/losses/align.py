"""Distribution alignment (Berthelot et al., ReMixMatch, ICLR 2020, §3.1): pseudo-labels get the class shares of the labels."""

import torch
from torch import Tensor, nn

from crkd_cli import world

FLOOR = 1e-4     # a share below it counts as this much
LATEST = 0.01    # weight of the latest shares in a running mean of more than 100


class Shares(nn.Module):
    """The running mean of every class's share of pixels, [K]: at first of all batches, later mostly of the last hundred."""

    mean: Tensor
    count: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(classes))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def follow(self, p: Tensor) -> None:
        """p [B, K, *S]: probabilities, or classes as 0 and 1. Does not count if one is not finite."""
        shares = world.mean(p.mean((0, *range(2, p.ndim)), dtype=torch.float32))
        finite = shares.isfinite().all()
        self.count += finite
        weight = (1.0 / self.count).clamp(LATEST, 1.0)
        self.mean.copy_(torch.where(finite, self.mean.lerp(shares, weight), self.mean))


def align(p: Tensor, wanted: Tensor, found: Tensor) -> Tensor:
    """p [B, K, *S] times wanted / found, two [K] shares, made to sum to 1 again over the classes."""
    ratio = wanted.clamp(min=FLOOR) / found.clamp(min=FLOOR)
    p = p * ratio.view(-1, *[1] * (p.ndim - 2))
    return p / p.sum(1, keepdim=True)
