"""CPKD, CFKD and LEC of CRKD: the two unlabeled streams of the student teach each other.

At every pixel the stream that is nearer to the pseudo-label is the teacher and gets no gradient.
`strong_teaches` [B, *S] marks the kept pixels where the strong stream is the teacher,
`perturbed_teaches` those where the feature-perturbed stream is. They never overlap.

Shapes: B images, K classes, F features, *S spatial axes (two or three).
"""

import torch
from torch import Tensor

from crkd_cli import world
from crkd_cli.losses.pixel import cross_entropy, divergence, entropy, masked_mean

MIN_NORM = 1e-12  # shorter features have no direction
MIN_PROBABILITY = 1e-12  # keeps the logarithm finite


def reliability(
    log_strong: Tensor, log_perturbed: Tensor, pseudo_label: Tensor, keep: Tensor
) -> tuple[Tensor, Tensor]:
    """Decide where each stream teaches: (strong_teaches, perturbed_teaches), boolean [B, *S].

    With M = [CE_strong < CE_perturbed] they are M · keep and (1 − M) · keep.
    """
    error_strong = cross_entropy(log_strong.detach(), pseudo_label)
    error_perturbed = cross_entropy(log_perturbed.detach(), pseudo_label)
    strong_is_nearer = error_strong < error_perturbed
    return strong_is_nearer & keep, ~strong_is_nearer & keep


def pixel_distillation(
    log_strong: Tensor, log_perturbed: Tensor, strong_teaches: Tensor, perturbed_teaches: Tensor
) -> Tensor:
    """Compute CPKD, the divergence KL(sg p_teacher ‖ p_learner) of both directions, divided by K.

    Each direction is averaged over the pixels where its teacher teaches. Dividing by K is as
    released: the program takes the mean over classes where the divergence is a sum.
    """
    to_perturbed = masked_mean(divergence(log_strong.detach(), log_perturbed), strong_teaches)
    to_strong = masked_mean(divergence(log_perturbed.detach(), log_strong), perturbed_teaches)
    return (to_perturbed + to_strong) / log_strong.shape[1]


def feature_distillation(
    strong: Tensor, perturbed: Tensor, strong_teaches: Tensor, perturbed_teaches: Tensor
) -> Tensor:
    """Compute CFKD: 1 − cos(sg F_teacher, F_learner), averaged over the pixels of each direction.

    The features [B, F, *S] are those that enter the output layer.
    """
    strong, perturbed = strong.float(), perturbed.float()
    norm_strong, norm_perturbed = _norm(strong), _norm(perturbed)
    dot = (strong.detach() * perturbed).sum(1)
    to_perturbed = 1.0 - dot / (norm_strong.detach() * norm_perturbed)
    dot = (strong * perturbed.detach()).sum(1)
    to_strong = 1.0 - dot / (norm_strong * norm_perturbed.detach())
    return masked_mean(to_perturbed, strong_teaches) + masked_mean(to_strong, perturbed_teaches)


def low_entropy_consistency(log_strong: Tensor, log_perturbed: Tensor) -> Tensor:
    """Compute LEC, the divergence of both streams from their mean q, which favors the certain one.

    With w_v = exp(−H(p_v)) · max p_v, α_v = w_v / Σ w and q = Σ α_v p_v, this is the mean over all
    pixels of Σ α_v KL(p_v ‖ q) = H(q) − Σ α_v H(p_v). Both arguments are [B, K, *S].
    """
    entropy_strong, entropy_perturbed = entropy(log_strong), entropy(log_perturbed)
    certainty_strong = log_strong.amax(1) - entropy_strong  # log w
    certainty_perturbed = log_perturbed.amax(1) - entropy_perturbed
    alpha = torch.sigmoid(certainty_strong - certainty_perturbed)  # of the strong stream
    q = torch.lerp(log_perturbed.exp(), log_strong.exp(), alpha.unsqueeze(1))
    entropy_q = -(q * q.clamp(min=MIN_PROBABILITY).log()).sum(1)
    mean_entropy = torch.lerp(entropy_perturbed, entropy_strong, alpha)
    return world.all_mean((entropy_q - mean_entropy).mean())


def _norm(features: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(features, dim=1)
    return norm.clamp(min=MIN_NORM)
