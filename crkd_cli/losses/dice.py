"""Soft Dice loss with squared denominators (Milletari, Navab, Ahmadi, 3DV 2016)."""

import torch
from torch import Tensor

EPSILON = 1e-5


def dice_loss(p: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over foreground classes of 1 − (2 Σ p·t + ε) / (Σ p² + Σ t² + ε).

    p [B, K, *S] probabilities, target [B, *S] class numbers, mask [B, *S]: sums run over the batch and the pixels that count.
    """
    losses = []
    for number in range(1, p.shape[1]):
        truth = target == number
        probability = p[:, number]
        if mask is not None:
            truth = truth & mask
            probability = torch.where(mask, probability, 0.0)
        overlap = torch.where(truth, probability, 0.0).sum()
        losses.append(1.0 - (2.0 * overlap + EPSILON) / (probability.square().sum() + truth.sum() + EPSILON))
    return torch.stack(losses).mean()
