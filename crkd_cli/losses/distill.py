"""The two student streams teach each other, pixel by pixel: CPKD, CFKD and LEC of CRKD.

At every pixel the stream nearer to the pseudo-label is the teacher and gets no gradient. `by_s` marks the kept pixels where the
strong stream s teaches, `by_fp` those where the feature-perturbed stream fp does; a pixel is in one of them at most.
"""

import torch
from torch import Tensor
from torch.nn import functional

from crkd_cli.losses.pixel import cross_entropy, divergence, entropy, masked_mean


def reliability(log_s: Tensor, log_fp: Tensor, pseudo: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """(by_s, by_fp), two boolean [B, *S]: M = [CE_s < CE_fp]; by_s = M · keep, by_fp = (1 − M) · keep."""
    s_is_nearer = cross_entropy(log_s.detach(), pseudo) < cross_entropy(log_fp.detach(), pseudo)
    return s_is_nearer & keep, ~s_is_nearer & keep


def pixel_distillation(log_s: Tensor, log_fp: Tensor, by_s: Tensor, by_fp: Tensor) -> Tensor:
    """CPKD: KL(sg p_s ‖ p_fp) averaged over by_s plus KL(sg p_fp ‖ p_s) averaged over by_fp."""
    return masked_mean(divergence(log_s.detach(), log_fp), by_s) + masked_mean(divergence(log_fp.detach(), log_s), by_fp)


def feature_distillation(features_s: Tensor, features_fp: Tensor, by_s: Tensor, by_fp: Tensor) -> Tensor:
    """CFKD: 1 − cos(F_s, F_fp) over by_s without gradient for F_s, plus the same over by_fp without gradient for F_fp.

    features [B, F, *S] of the decoder's last level.
    """
    s = functional.normalize(features_s.float(), dim=1)
    fp = functional.normalize(features_fp.float(), dim=1)
    to_fp = 1.0 - (s.detach() * fp).sum(1)
    to_s = 1.0 - (s * fp.detach()).sum(1)
    return masked_mean(to_fp, by_s) + masked_mean(to_s, by_fp)


def low_entropy_consistency(log_s: Tensor, log_fp: Tensor) -> Tensor:
    """LEC: w_v = exp(−H(p_v)) · max p_v, α_v = w_v / Σ w, q = Σ α_v p_v; mean over all pixels of Σ α_v KL(p_v ‖ q)."""
    streams = (log_s, log_fp)
    weights = torch.stack([torch.exp(log_p.amax(1) - entropy(log_p)) for log_p in streams])
    shares = weights / weights.sum(0)
    mixed = sum(share.unsqueeze(1) * log_p.exp() for share, log_p in zip(shares, streams, strict=True))
    log_mixed = torch.log(torch.as_tensor(mixed).clamp(min=1e-12))
    parts = [share * divergence(log_p, log_mixed) for share, log_p in zip(shares, streams, strict=True)]
    return torch.stack(parts).sum(0).mean()
