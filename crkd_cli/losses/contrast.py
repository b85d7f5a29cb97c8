"""CSD of CRKD: a supervised-contrastive loss between labeled anchors and unlabeled features.

Features are sampled first and projected afterwards: the same loss as projecting every pixel, at a thousandth of the cost.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from crkd_cli import world
from crkd_cli.transfer import to_device


class Samples(NamedTuple):
    """N sampled features of one stream."""

    features: Tensor  # [N, F] float32
    classes: Tensor  # [N] class numbers
    valid: Tensor  # [N] boolean: False for a class that the stream has nowhere


def class_means(confidence: Tensor, pseudo: Tensor, classes: int) -> Tensor:
    """Mean confidence of every class's pixels in the joint batch, [K]; 0 for one that is nowhere. Both arguments [B, *S]."""
    members = pseudo.flatten() == torch.arange(classes, device=pseudo.device).unsqueeze(
        1
    )  # [K, pixels]
    # Not index_add_: a float32 cell to which millions are added one by one grows too fast, then no more.
    sums, counts = world.all_sum(
        torch.where(members, confidence.flatten(), 0.0).sum(1), members.sum(1)
    )
    return sums / counts.clamp(min=1)


def sample(
    features: Tensor, classes: Tensor, eligible: Tensor, order: Tensor, count: int, number: int
) -> Samples:
    """`number` eligible pixels, number/K a class (the last takes the remainder), and every class's mean as one more.

    features [B, F, *S]; classes, eligible, order [B, *S]. Of a class's eligible pixels those with the highest random `order` are
    drawn; where a class has fewer than its share they repeat (drawing with replacement). `count` is K. No host synchronization.
    They are drawn from the joint batch: every process gives its own best, and all get the same samples.
    """
    rows = features.movedim(1, -1).reshape(-1, features.shape[1])
    members = (
        classes.flatten() == torch.arange(count, device=classes.device).unsqueeze(1)
    ) & eligible.flatten()  # [K, pixels]
    labels, ranks = _plan(count, number, rows.device)
    best = torch.where(members, order.flatten(), -1.0).topk(
        min(number // count + number % count, members.shape[1])
    )  # [K, n]
    candidates = rows.index_select(0, best.indices.flatten()).float().view(*best.indices.shape, -1)
    with torch.autocast(rows.device.type, enabled=False):
        sums = (members.to(rows.dtype) @ rows).float()
    ranked, sizes, sums = _joint(candidates, best.values, members.sum(1), sums)
    depth, size = ranked.shape[1], sizes[labels]
    pool = torch.cat([ranked.flatten(0, 1), sums / sizes.clamp(min=1).unsqueeze(1)])
    # The first `size` ranks are members; later ones are not: start again from rank 0 there.
    place = torch.where(
        ranks < 0, count * depth + labels, depth * labels + ranks % size.clamp(min=1, max=depth)
    )
    valid = size > 0
    # An absent class has nothing to draw: copies of other rows stand in, so that no other pixel enters the batch norm to come.
    number_of = torch.arange(len(labels), device=rows.device)
    present = valid.argsort(descending=True, stable=True)[number_of % valid.sum().clamp(min=1)]
    return Samples(pool.index_select(0, torch.where(valid, place, place[present])), labels, valid)


@cache
def _plan(count: int, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(class, rank) of every sample, two [number + K]: number/K ranks a class, the last with the remainder, then its mean, −1."""
    shares = [number // count + (number % count if k == count - 1 else 0) for k in range(count)]
    plan = [(k, rank) for k, share in enumerate(shares) for rank in (*range(share), -1)]
    labels, ranks = to_device(torch.tensor(plan), device).unbind(1)
    return labels, ranks


def _joint(
    candidates: Tensor, orders: Tensor, sizes: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """This process's `candidates` [K, n, F] by falling `orders` [K, n]; `sizes` [K] and `sums` [K, F].

    Gives the candidates of every class by falling order, sizes and sums of all processes, in one exchange.
    """
    if world.size() == 1:
        return candidates, sizes, sums
    own = torch.cat([candidates, orders.unsqueeze(2)], dim=2)
    own = torch.cat(
        [own, torch.cat([sums, sizes.float().unsqueeze(1)], dim=1).unsqueeze(1)], dim=1
    )  # [K, n + 1, F + 1]
    every = world.all_gather(own.unsqueeze(0))
    ranked, totals = every[:, :, :-1].transpose(0, 1).flatten(1, 2), every[:, :, -1].sum(0)
    falling = ranked[:, :, -1:].argsort(dim=1, descending=True)
    return ranked.take_along_dim(falling, 1)[:, :, :-1], totals[:, -1].long(), totals[:, :-1]


def contrast(
    anchors: Tensor, others: Tensor, anchor: Samples, other: Samples, temperature: float
) -> Tensor:
    """− mean_i Σ_{j: k_j = k_i} log softmax_j(a_i · u_j / T) / |{j: k_j = k_i}| (Khosla et al., NeurIPS 2020, eq. 2).

    anchors [N, P] and others [M, P] are the projected rows of `anchor` and `other`. An anchor whose class is absent among the
    others is left out; where none is left the loss is 0.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        scores = anchors.float() @ others.float().T / temperature
    log_softmax = scores - torch.where(other.valid, scores, -torch.inf).logsumexp(
        1, keepdim=True
    ).clamp(min=-1e30)
    positive = (anchor.classes.unsqueeze(1) == other.classes) & other.valid
    counts = positive.sum(1)
    means = torch.where(positive, log_softmax, 0.0).sum(1) / counts.clamp(min=1)
    counted = anchor.valid & (counts > 0)
    return -torch.where(counted, means, 0.0).sum() / counted.sum().clamp(min=1)
