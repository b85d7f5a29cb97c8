"""Soft Dice loss (Milletari, Navab, Ahmadi, 3DV 2016), in the forms that the released programs use."""

from typing import Literal

import torch
from torch import Tensor

from crkd_cli import world

DiceClasses = Literal["all", "foreground"]  # all: the background too


def dice_loss(
    p: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    classes: DiceClasses = "all",
    squared: bool = True,
    pooled: bool = True,
    epsilon: float = 1e-5,
) -> Tensor:
    """Mean over classes of 1 − (2 Σ p·t + ε) / (Σ p² + Σ t² + ε).

    p [B, K, *S] probabilities, target [B, *S] class numbers, mask [B, *S] boolean: the pixels that count.
    `squared`: with Σ p² in the denominator, else with Σ p. `pooled`: the sums run over the joint batch, else
    over each image, and the loss is the mean over images.
    """
    first = 0 if classes == "all" else 1
    numbers = torch.arange(first, p.shape[1], device=p.device).view(-1, *[1] * (p.ndim - 2))
    truth = target.unsqueeze(1) == numbers  # [B, K or K − 1, *S]
    p = p[:, first:]
    kept = p if mask is None else p * mask.unsqueeze(1)
    axes = (0, *range(2, p.ndim)) if pooled else tuple(range(2, p.ndim))
    overlap = (kept * truth).sum(axes)
    sizes = (truth if mask is None else truth & mask.unsqueeze(1)).sum(axes)
    denominator = (kept * p if squared else kept).sum(axes) + sizes
    if pooled:
        overlap, denominator = world.all_sum(overlap, denominator)
    loss = (1.0 - (2.0 * overlap + epsilon) / (denominator + epsilon)).mean()
    return loss if pooled else world.all_mean(loss)
