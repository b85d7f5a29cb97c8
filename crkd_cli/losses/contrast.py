"""CSD of CRKD: a supervised contrastive loss between labeled anchors and unlabeled features.

Features are sampled first and projected afterwards. This gives the same loss as projecting every
pixel, at a thousandth of the cost.

Shapes: B images, K classes, N pixels of a batch, F features, *S spatial axes (two or three).
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from crkd_cli import world
from crkd_cli.transfer import to_device

_CLASS_MEAN = -1  # the rank that stands for the mean of a class


class Samples(NamedTuple):
    """M sampled features of one stream."""

    features: Tensor  # [M, F] float32
    classes: Tensor  # [M] class numbers
    valid: Tensor  # [M] boolean; False for a class that does not occur in the stream


class _Candidates(NamedTuple):
    """What may be sampled: the members of each class with the highest order, R of them."""

    features: Tensor  # [K, R, F], by descending order
    order: Tensor  # [K, R]; -1 where a class has fewer than R members
    sizes: Tensor  # [K] members of each class
    sums: Tensor  # [K, F] sums over all members of each class


def class_means(confidence: Tensor, pseudo_label: Tensor, num_classes: int) -> Tensor:
    """Compute the mean confidence [K] of the pixels of every class in the joint batch.

    Both maps are [B, *S]. The mean of a class without pixels is 0.
    """
    members = _class_masks(pseudo_label, num_classes)
    # index_add_ would lose precision: a float32 cell that millions of values are added to one by
    # one grows too fast and then stops growing.
    sums, counts = world.all_sum(
        torch.where(members, confidence.flatten(), 0.0).sum(1), members.sum(1)
    )
    return sums / counts.clamp(min=1)


def sample(
    features: Tensor,
    class_map: Tensor,
    eligible: Tensor,
    order: Tensor,
    num_classes: int,
    num_samples: int,
) -> Samples:
    """Draw `num_samples` eligible pixels, equally many of each class, and add every class mean.

    Of a class's eligible pixels, those with the highest `order` are drawn; a class with fewer
    pixels than its quota repeats them, as drawing with replacement would. Several processes draw
    from their joint batch: each contributes its best candidates, and all get the same samples.
    Never synchronizes with the host.

    Args:
        features: [B, F, *S].
        class_map: class of every pixel, [B, *S].
        eligible: pixels that may be drawn, boolean [B, *S].
        order: random numbers in [0, 1), [B, *S].
        num_classes: K.
        num_samples: total over all classes; if it is not a multiple of K, the last classes get
            one more.

    Returns:
        `num_samples` + K samples.
    """
    rows = features.movedim(1, -1).reshape(-1, features.shape[1])  # [N, F]
    members = _class_masks(class_map, num_classes) & eligible.flatten()  # [K, N]
    quota = -(-num_samples // num_classes)  # the largest of a class
    candidates = _gather(_best_members(rows, members, order.flatten(), quota))

    classes, ranks = _slots(num_classes, num_samples, rows.device)
    valid = candidates.sizes[classes] > 0
    index = _fill_absent(_candidate_index(candidates, classes, ranks), valid)
    means = candidates.sums / candidates.sizes.clamp(min=1).unsqueeze(1)
    pool = torch.cat([candidates.features.flatten(0, 1), means])  # [K · R + K, F]
    return Samples(pool.index_select(0, index), classes, valid)


def concat(*samples: Samples) -> Samples:
    """Concatenate the samples of several streams."""
    features, classes, valid = (torch.cat(parts) for parts in zip(*samples, strict=True))
    return Samples(features, classes, valid)


def contrast(
    anchors: Tensor, others: Tensor, anchor: Samples, other: Samples, temperature: float
) -> Tensor:
    """Compute the supervised contrastive loss of Khosla et al. (NeurIPS 2020, equation 2).

    −mean_i Σ_{j: k_j = k_i} log softmax_j(a_i · u_j / T) / |{j: k_j = k_i}|. An anchor whose
    class is absent among the others is left out; without any anchor left, the loss is 0.

    Args:
        anchors: projected features of `anchor`, [M, P].
        others: projected features of `other`, [M', P].
        anchor: classes and validity of the anchors.
        other: classes and validity of the positives and negatives.
        temperature: T.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        scores = anchors.float() @ others.float().T / temperature  # [M, M']
    normalizer = torch.where(other.valid, scores, -torch.inf).logsumexp(1, keepdim=True)
    # Without a valid column the normalizer is −∞, which would make the gradient NaN.
    log_softmax = scores - normalizer.clamp(min=-1e30)

    positive = (anchor.classes.unsqueeze(1) == other.classes) & other.valid
    num_positives = positive.sum(1)
    means = torch.where(positive, log_softmax, 0.0).sum(1) / num_positives.clamp(min=1)
    counted = anchor.valid & (num_positives > 0)
    return -torch.where(counted, means, 0.0).sum() / counted.sum().clamp(min=1)


def _class_masks(class_map: Tensor, num_classes: int) -> Tensor:
    """Split a class map [B, *S] into one boolean mask per class, [K, N]."""
    classes = torch.arange(num_classes, device=class_map.device)
    return class_map.flatten() == classes.unsqueeze(1)


def _best_members(rows: Tensor, members: Tensor, order: Tensor, quota: int) -> _Candidates:
    """Rank the members of every class on this process: rows [N, F], members [K, N], order [N]."""
    ranked = torch.where(members, order, -1.0).topk(min(quota, members.shape[1]))  # [K, R]
    best = rows.index_select(0, ranked.indices.flatten()).float()
    with torch.autocast(rows.device.type, enabled=False):
        sums = (members.to(rows.dtype) @ rows).float()
    features = best.view(*ranked.indices.shape, -1)
    return _Candidates(features, ranked.values, members.sum(1), sums)


def _gather(local: _Candidates) -> _Candidates:
    """Merge the candidates of all processes in one exchange."""
    if world.size() == 1:
        return local
    ranked = torch.cat([local.features, local.order.unsqueeze(2)], dim=2)  # [K, R, F + 1]
    totals = torch.cat([local.sums, local.sizes.float().unsqueeze(1)], dim=1)  # [K, F + 1]
    packed = torch.cat([ranked, totals.unsqueeze(1)], dim=1)  # [K, R + 1, F + 1]
    gathered = world.all_gather(packed.unsqueeze(0))  # [processes, K, R + 1, F + 1]

    ranked = gathered[:, :, :-1].transpose(0, 1).flatten(1, 2)  # [K, processes · R, F + 1]
    descending = ranked[:, :, -1:].argsort(dim=1, descending=True)
    ranked = ranked.take_along_dim(descending, 1)
    totals = gathered[:, :, -1].sum(0)
    return _Candidates(
        features=ranked[:, :, :-1],
        order=ranked[:, :, -1],
        sizes=totals[:, -1].long(),
        sums=totals[:, :-1],
    )


@cache
def _slots(num_classes: int, num_samples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """List (class, rank) of every sample: for each class its ranks from 0, then its mean."""
    slots = []
    for number in range(num_classes):
        # Rounded so that the remainder is spread over the last classes.
        quota = (num_samples + number) // num_classes
        slots += [(number, rank) for rank in range(quota)]
        slots.append((number, _CLASS_MEAN))
    classes, ranks = to_device(torch.tensor(slots), device).unbind(1)
    return classes, ranks


def _candidate_index(candidates: _Candidates, classes: Tensor, ranks: Tensor) -> Tensor:
    """Locate every slot in the pool, which holds R candidates per class and then the K means."""
    num_classes, depth = candidates.order.shape
    # Only the first `sizes` ranks are members. Further slots start again from rank 0.
    repeat = candidates.sizes[classes].clamp(min=1, max=depth)
    drawn = depth * classes + ranks % repeat
    mean = num_classes * depth + classes
    return torch.where(ranks == _CLASS_MEAN, mean, drawn)


def _fill_absent(index: Tensor, valid: Tensor) -> Tensor:
    """Let the slots of absent classes repeat valid slots.

    They have nothing to draw, and any other pixel would enter the batch norm of the projection.
    """
    slots = torch.arange(len(index), device=index.device)
    valid_first = valid.argsort(descending=True, stable=True)
    replacement = valid_first[slots % valid.sum().clamp(min=1)]
    return torch.where(valid, index, index[replacement])
