"""Per-pixel terms: cross entropy, divergence, entropy; and the masked mean."""

import torch
import torch.nn.functional as F
from torch import Tensor

from crkd_cli import world


def log_probabilities(logits: Tensor) -> Tensor:
    """Compute log-softmax [B, K, *S] in float32 from logits of any precision."""
    return F.log_softmax(logits.float(), dim=1)


def probabilities(logits: Tensor) -> Tensor:
    """Compute softmax [B, K, *S] in float32 from logits of any precision.

    Where no logarithm is needed, this takes half the passes over memory.
    """
    return F.softmax(logits.float(), dim=1)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Average values [B, *S] where mask [B, *S] is True, over the joint batch.

    The mean over an empty mask is 0.
    """
    if mask is None:
        return world.all_mean(values.mean())
    if mask.shape != values.shape:
        raise ValueError(
            f"mask {tuple(mask.shape)} and values {tuple(values.shape)} differ in shape"
        )
    total, count = world.all_sum(torch.where(mask, values, 0.0).sum(), mask.sum())
    return total / count.clamp(min=1)


def cross_entropy(log_p: Tensor, target: Tensor) -> Tensor:
    """Compute −log p_target [B, *S] from log_p [B, K, *S] and class numbers [B, *S]."""
    return -log_p.gather(1, target.unsqueeze(1)).squeeze(1)


def squared_difference(p: Tensor, q: Tensor) -> Tensor:
    """Average (p − q)² over K at every pixel: two [B, K, *S] → [B, *S]."""
    return (p - q).square().mean(1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Compute KL(p ‖ q) = Σ_K p (log p − log q) at every pixel: two [B, K, *S] → [B, *S]."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


def entropy(log_p: Tensor) -> Tensor:
    """Compute H(p) = −Σ_K p log p in nats at every pixel: [B, K, *S] → [B, *S]."""
    return -(log_p.exp() * log_p).sum(1)
