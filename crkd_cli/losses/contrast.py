"""CSD of CRKD: a supervised-contrastive loss between labelled anchors and unlabelled features.

Features are sampled first and projected afterwards: the same loss as projecting every pixel, at a thousandth of the cost.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from crkd_cli import world


class Samples(NamedTuple):
    """N sampled features of one stream."""

    features: Tensor    # [N, F] float32
    classes: Tensor     # [N] class numbers
    valid: Tensor       # [N] boolean: False for a class that the stream has nowhere


def class_means(confidence: Tensor, pseudo: Tensor, classes: int) -> Tensor:
    """Mean confidence of every class's pixels in the joint batch, [K]; 0 for one that is nowhere. Both arguments [B, *S]."""
    members = pseudo.flatten() == torch.arange(classes, device=pseudo.device).unsqueeze(1)    # [K, pixels]
    # Not index_add_: a float32 cell to which millions are added one by one grows too fast, then no more.
    sums, counts = world.total(torch.where(members, confidence.flatten(), 0.0).sum(1), members.sum(1))
    return sums / counts.clamp(min=1)


def sample(features: Tensor, classes: Tensor, eligible: Tensor, order: Tensor, count: int, number: int) -> Samples:
    """`number` eligible pixels, number/K a class (the last takes the remainder), and every class's mean as one more.

    features [B, F, *S]; classes, eligible, order [B, *S]. Of a class's eligible pixels those with the highest random `order` are
    drawn; where a class has fewer than its share they repeat (drawing with replacement). `count` is K. No host synchronisation.
    They are drawn from the joint batch: every process gives its own best, and all get the same samples.
    """
    rows = features.movedim(1, -1).reshape(-1, features.shape[1])
    members = (classes.flatten() == torch.arange(count, device=classes.device).unsqueeze(1)) & eligible.flatten()    # [K, pixels]
    shares = [number // count + (number % count if k == count - 1 else 0) for k in range(count)]
    best = [
        torch.where(member, order.flatten(), -1.0).topk(min(share, member.numel()))
        for member, share in zip(members, shares, strict=True)
    ]
    candidates = rows[torch.cat([one.indices for one in best])].float()
    with torch.autocast(rows.device.type, enabled=False):
        sums = (members.to(rows.dtype) @ rows).float()
    ranked, sizes, sums = _joint(candidates, [one.values for one in best], members.sum(1), sums)
    drawn = []
    for one, size, total, share in zip(ranked, sizes, sums, shares, strict=True):
        # The first `size` ranks are members; later ones are not: start again from rank 0 there.
        drawn.append(one[torch.arange(share, device=size.device) % size.clamp(min=1, max=len(one))])
        drawn.append((total / size.clamp(min=1)).unsqueeze(0))
    labels = torch.cat([torch.full((share + 1,), k, device=rows.device) for k, share in enumerate(shares)])
    valid = (sizes > 0)[labels]
    # An absent class has nothing to draw: copies of other rows stand in, so that no other pixel enters the batch norm to come.
    number_of = torch.arange(len(labels), device=rows.device)
    present = valid.argsort(descending=True, stable=True)[number_of % valid.sum().clamp(min=1)]
    return Samples(torch.cat(drawn)[torch.where(valid, number_of, present)], labels, valid)


def _joint(candidates: Tensor, orders: list[Tensor], sizes: Tensor, sums: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """This process's `candidates` [N, F] of all classes, by falling `orders` [n] in each; `sizes` [K] and `sums` [K, F].

    Gives the candidates of every class by falling order, sizes and sums of all processes, in one exchange.
    """
    lengths = [len(order) for order in orders]
    if world.size() == 1:
        return list(torch.split(candidates, lengths)), sizes, sums
    own = torch.cat([torch.cat([candidates, sums]), torch.cat([*orders, sizes.float()]).unsqueeze(1)], dim=1)
    every = world.gather(own.unsqueeze(0))
    *ranked, totals = (part.flatten(0, 1) for part in torch.split(every, [*lengths, len(sizes)], dim=1))
    ranked = [one[one[:, -1].argsort(descending=True), :-1] for one in ranked]
    totals = totals.view(world.size(), len(sizes), -1).sum(0)
    return ranked, totals[:, -1].long(), totals[:, :-1]


def contrast(anchors: Tensor, others: Tensor, anchor: Samples, other: Samples, temperature: float) -> Tensor:
    """− mean_i Σ_{j: k_j = k_i} log softmax_j(a_i · u_j / T) / |{j: k_j = k_i}| (Khosla et al., NeurIPS 2020, eq. 2).

    anchors [N, P] and others [M, P] are the projected rows of `anchor` and `other`. An anchor whose class is absent among the
    others is left out; where none is left the loss is 0.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        scores = anchors.float() @ others.float().T / temperature
    log_softmax = scores - torch.where(other.valid, scores, -torch.inf).logsumexp(1, keepdim=True).clamp(min=-1e30)
    positive = (anchor.classes.unsqueeze(1) == other.classes) & other.valid
    counts = positive.sum(1)
    means = torch.where(positive, log_softmax, 0.0).sum(1) / counts.clamp(min=1)
    counted = anchor.valid & (counts > 0)
    return -torch.where(counted, means, 0.0).sum() / counted.sum().clamp(min=1)
