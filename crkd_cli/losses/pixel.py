"""Terms of single pixels: cross entropy, divergence, entropy, and the masked mean."""

import torch
from torch import Tensor
from torch.nn import functional

from crkd_cli import world


def log_probabilities(logits: Tensor) -> Tensor:
    """logits [B, K, *S] of any precision → log-softmax [B, K, *S] in float32."""
    return functional.log_softmax(logits.float(), dim=1)


def probabilities(logits: Tensor) -> Tensor:
    """logits [B, K, *S] of any precision → softmax [B, K, *S] in float32: where no logarithm is needed, half of the passes."""
    return functional.softmax(logits.float(), dim=1)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of values [B, *S] where mask [B, *S] is True, over the joint batch; 0 where it is nowhere."""
    if mask is None:
        return world.all_mean(values.mean())
    if mask.shape != values.shape:
        raise ValueError(
            f"mask {tuple(mask.shape)} and values {tuple(values.shape)} differ in shape"
        )
    sums, count = world.all_sum(torch.where(mask, values, 0.0).sum(), mask.sum())
    return sums / count.clamp(min=1)


def cross_entropy(log_p: Tensor, target: Tensor) -> Tensor:
    """log_p [B, K, *S], target [B, *S] class numbers → −log p_target [B, *S]."""
    return -log_p.gather(1, target.unsqueeze(1)).squeeze(1)


def squared_difference(p: Tensor, q: Tensor) -> Tensor:
    """Mean over K of (p − q)² at every pixel: two [B, K, *S] → [B, *S]."""
    return (p - q).square().mean(1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_K p (log p − log q) at every pixel: two [B, K, *S] → [B, *S]."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


def entropy(log_p: Tensor) -> Tensor:
    """H(p) = −Σ_K p log p at every pixel, in nats: [B, K, *S] → [B, *S]."""
    return -(log_p.exp() * log_p).sum(1)
