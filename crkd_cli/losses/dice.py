"""Soft Dice loss (Milletari, Navab, Ahmadi, 3DV 2016)."""

import torch
from torch import Tensor

from crkd_cli import world

EPSILON = 1e-5


def dice_loss(p: Tensor, target: Tensor, mask: Tensor | None = None, *, squared: bool = True) -> Tensor:
    """Mean over foreground classes of 1 − (2 Σ p·t + ε) / (Σ p² + Σ t² + ε), or with Σ p + Σ t where not `squared`.

    p [B, K, *S] probabilities, target [B, *S] class numbers, mask [B, *S]: sums run over the joint batch and the
    pixels that count.
    """
    classes = torch.arange(1, p.shape[1], device=p.device).view(-1, *[1] * (p.ndim - 2))
    truth = target.unsqueeze(1) == classes    # [B, K − 1, *S]
    p = p[:, 1:]
    kept = p if mask is None else p * mask.unsqueeze(1)
    axes = (0, *range(2, p.ndim))
    sizes = (truth if mask is None else truth & mask.unsqueeze(1)).sum(axes)
    overlap, denominator = world.total((kept * truth).sum(axes), (kept * p if squared else kept).sum(axes) + sizes)
    return (1.0 - (2.0 * overlap + EPSILON) / (denominator + EPSILON)).mean()
