"""The two student streams teach each other, pixel by pixel: CPKD, CFKD and LEC of CRKD.

At every pixel the stream nearer to the pseudo-label is the teacher and gets no gradient. `by_s` marks the kept pixels where the
strong stream s teaches, `by_fp` those where the feature-perturbed stream fp does; a pixel is in one of them at most.
"""

from typing import Any

import torch
from torch import Tensor

from crkd_cli import world
from crkd_cli.losses.pixel import cross_entropy, divergence, masked_mean

LENGTH = 1e-12  # features shorter than this have no direction


def reliability(
    log_s: Tensor, log_fp: Tensor, pseudo: Tensor, keep: Tensor
) -> tuple[Tensor, Tensor]:
    """(by_s, by_fp), two boolean [B, *S]: M = [CE_s < CE_fp]; by_s = M · keep, by_fp = (1 − M) · keep."""
    s_is_nearer = cross_entropy(log_s.detach(), pseudo) < cross_entropy(log_fp.detach(), pseudo)
    return s_is_nearer & keep, ~s_is_nearer & keep


def pixel_distillation(log_s: Tensor, log_fp: Tensor, by_s: Tensor, by_fp: Tensor) -> Tensor:
    """CPKD: KL(sg p_s ‖ p_fp) averaged over by_s plus KL(sg p_fp ‖ p_s) averaged over by_fp, both over K.

    The released program takes the mean over classes where the divergence is a sum.
    """
    to_fp = masked_mean(divergence(log_s.detach(), log_fp), by_s)
    to_s = masked_mean(divergence(log_fp.detach(), log_s), by_fp)
    return (to_fp + to_s) / log_s.shape[1]


def feature_distillation(
    features_s: Tensor, features_fp: Tensor, by_s: Tensor, by_fp: Tensor
) -> Tensor:
    """CFKD: 1 − cos(F_s, F_fp) over by_s without gradient for F_s, plus the same over by_fp without gradient for F_fp.

    features [B, F, *S] of the decoder's last level.
    """
    counts = world.all_sum(by_s.sum(), by_fp.sum())
    to_fp, to_s = (
        by.float() / count.clamp(min=1) for by, count in zip((by_s, by_fp), counts, strict=True)
    )
    (loss,) = world.all_sum(_DirectedCosine.apply(features_s, features_fp, to_s, to_fp))  # type: ignore[no-untyped-call]
    return loss


class _DirectedCosine(torch.autograd.Function):
    """Σ (v + w) (1 − cos(a, b)) over pixels, whose gradient for a is weighted by v and that for b by w.

    a, b [B, F, *S]; v, w [B, *S]. One cosine serves both directions: ∂cos/∂a = (b/|b| − cos · a/|a|) / |a|.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, v: Tensor, w: Tensor) -> Tensor:
        x, y = a.float(), b.float()
        length_a, length_b = (torch.linalg.vector_norm(z, dim=1).clamp(min=LENGTH) for z in (x, y))
        cosine = (x * y).sum(1) / (length_a * length_b)
        ctx.save_for_backward(a, b, v, w, length_a, length_b, cosine)
        loss: Tensor = ((v + w) * (1.0 - cosine)).sum()
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, b, v, w, length_a, length_b, cosine = ctx.saved_tensors
        across = -gradient / (length_a * length_b)
        along_a, along_b = (
            gradient * cosine / length_a.square(),
            gradient * cosine / length_b.square(),
        )
        x, y = a.float(), b.float()  # products of bfloat16 with float32 take twice as long
        to_a = (x * (along_a * v).unsqueeze(1)).addcmul_(y, (across * v).unsqueeze(1))
        to_b = (y * (along_b * w).unsqueeze(1)).addcmul_(x, (across * w).unsqueeze(1))
        return to_a.to(a.dtype), to_b.to(b.dtype), None, None


def low_entropy_consistency(log_s: Tensor, log_fp: Tensor) -> Tensor:
    """LEC: w_v = exp(−H(p_v)) · max p_v, α_v = w_v / Σ w, q = Σ α_v p_v; mean over all pixels of Σ α_v KL(p_v ‖ q).

    log_s, log_fp [B, K, *S] log-probabilities.
    """
    return world.all_mean(_LowEntropy.apply(log_s, log_fp))  # type: ignore[no-untyped-call]


class _LowEntropy(torch.autograd.Function):
    """Mean of H(q) − Σ α_v H(p_v), which is Σ α_v KL(p_v ‖ q), in half of the passes over memory that its parts would take.

    α_s = σ(u) with u = (max log p_s − H_s) − (max log p_fp − H_fp). With A_v = −Σ p_v log q − H_v = KL(p_v ‖ q) and
    g = ∂/∂u = α_s α_fp (A_s − A_fp), the gradient for log p_s is p_s (α_s (log p_s − log q) + g (log p_s + 1)), and g more for
    the likeliest class; for log p_fp the same with α_fp and −g.
    """

    @staticmethod
    def forward(ctx: Any, log_s: Tensor, log_fp: Tensor) -> Tensor:
        p_s, p_fp = log_s.exp(), log_fp.exp()
        entropy_s, entropy_fp = (-(p * log_p).sum(1) for p, log_p in ((p_s, log_s), (p_fp, log_fp)))
        (top_s, best_s), (top_fp, best_fp) = log_s.max(1), log_fp.max(1)
        share = torch.sigmoid((top_s - entropy_s) - (top_fp - entropy_fp))
        mixed = torch.lerp(p_fp, p_s, share.unsqueeze(1))
        log_q = mixed.clamp(min=1e-12).log()
        ctx.save_for_backward(
            log_s, log_fp, p_s, p_fp, entropy_s, entropy_fp, best_s, best_fp, share, log_q
        )
        loss: Tensor = -((mixed * log_q).sum(1) + torch.lerp(entropy_fp, entropy_s, share)).mean()
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        log_s, log_fp, p_s, p_fp, entropy_s, entropy_fp, best_s, best_fp, share, log_q = (
            ctx.saved_tensors
        )
        scale = gradient / share.numel()
        apart = (entropy_fp - entropy_s) - ((p_s - p_fp) * log_q).sum(1)  # A_s − A_fp
        g = scale * share * (1.0 - share) * apart

        def to(log_p: Tensor, p: Tensor, best: Tensor, alpha: Tensor, g: Tensor) -> Tensor:
            found: Tensor = (
                (log_p - log_q)
                .mul_(alpha.unsqueeze(1))
                .addcmul_(log_p + 1.0, g.unsqueeze(1))
                .mul_(p)
            )
            found.scatter_add_(1, best.unsqueeze(1), g.unsqueeze(1))
            return found

        return to(log_s, p_s, best_s, scale * share, g), to(
            log_fp, p_fp, best_fp, scale * (1.0 - share), -g
        )
