"""Soft Dice loss (Milletari, Navab and Ahmadi, 3DV 2016), in the forms of the released programs."""

from typing import Literal

import torch
from torch import Tensor

from crkd_cli import world

DiceClasses = Literal["all", "foreground"]  # all: including the background


def dice_loss(
    p: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    classes: DiceClasses = "all",
    squared: bool = True,
    pooled: bool = True,
    epsilon: float = 1e-5,
    skip_absent: bool = False,
) -> Tensor:
    """Compute the mean over classes of 1 − (2 Σ p·t + ε) / (Σ p² + Σ t² + ε).

    Args:
        p: probabilities [B, K, *S].
        target: class numbers [B, *S].
        mask: pixels that count, boolean [B, *S].
        classes: "foreground" leaves class 0 out of the mean.
        squared: use Σ p² in the denominator, otherwise Σ p.
        pooled: sum over the joint batch, otherwise over each image; the loss is then the mean
            over images.
        epsilon: ε.
        skip_absent: let classes of which `target` has no pixel that counts add 0 to the mean.
            Otherwise each adds 1 − ε / (Σ p² + ε), which takes what is left of its probability.
    """
    first = 0 if classes == "all" else 1
    p = p[:, first:]
    numbers = torch.arange(first, first + p.shape[1], device=p.device)
    truth = target.unsqueeze(1) == numbers.view(-1, *[1] * (p.ndim - 2))  # [B, K or K − 1, *S]
    kept = p
    if mask is not None:
        kept = p * mask.unsqueeze(1)

    axes = (0, *range(2, p.ndim)) if pooled else tuple(range(2, p.ndim))
    overlap = (kept * truth).sum(axes)
    if mask is not None:
        truth = truth & mask.unsqueeze(1)
    predicted, size = (kept * p if squared else kept).sum(axes), truth.sum(axes)
    if pooled:
        overlap, predicted, size = world.all_sum(overlap, predicted, size)
    by_class = 1.0 - (2.0 * overlap + epsilon) / (predicted + size + epsilon)
    if skip_absent:
        by_class = torch.where(size > 0, by_class, 0.0)
    loss = by_class.mean()
    return loss if pooled else world.all_mean(loss)
