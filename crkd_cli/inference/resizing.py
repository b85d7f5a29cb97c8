"""Resize probabilities and choose the most probable class, with little in memory at a time.

Legend: K classes, D planes of a case along its first axis, n planes at a time, H × W the size of a
plane, *S any axes.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crkd_cli.data.store import label_dtype

BLOCK_BYTES = 2**24  # of probabilities that are resized at a time; more is slower on a CPU


def resize(
    blocks: Iterable[Tensor], depth: int, size: Sequence[int], *, nearest: bool
) -> Iterator[tuple[slice, Iterator[Tensor]]]:
    """Resize a case of `depth` planes, which come in `blocks` [n, K, H, W], to `size` (D, H, W).

    Takes the nearest value with aligned corners if `nearest`; else interpolates linearly with
    aligned edges, as `F.interpolate` does. Yields some planes at a time: which ones of the new size
    they are, and their probabilities [n, H, W] class by class.
    """
    done = 0
    for block in _resize_first_axis(blocks, depth, size[0], nearest=nearest):
        for planes in torch.split(block, _at_once(block.shape[1], *size[1:])):
            stop = done + len(planes)
            yield slice(done, stop), _resize_other_axes(planes, size[1:], nearest=nearest)
            done = stop


def most_probable(probabilities: Iterable[Tensor], classes: int) -> tuple[Tensor, Tensor]:
    """Return class numbers [*S] from the probabilities [*S] of every one of the `classes`.

    Also returns their probabilities [*S]. Of equally probable ones, the first. Compares one class
    after another: torch's argmax over an axis other than the last takes ten times as long on a CPU,
    and returns int64.
    """
    by_class = iter(probabilities)
    highest = next(by_class).clone()
    dtype = torch.uint8 if label_dtype(classes) is np.uint8 else torch.int16
    labels = torch.zeros_like(highest, dtype=dtype)
    for k, probability in enumerate(by_class, start=1):
        labels.masked_fill_(probability > highest, k)
        torch.maximum(highest, probability, out=highest)
    return labels, highest


def resize_to_nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize `x` [B, C, *S] to `size` by the nearest neighbor with aligned corners.

    This is scipy.ndimage.zoom with order 0.
    """
    for axis, new in enumerate(size, start=2):
        old = x.shape[axis]
        if old != new:
            x = x.index_select(axis, _nearest(old, new).to(x.device))
    return x


def _resize_first_axis(
    blocks: Iterable[Tensor], old: int, new: int, *, nearest: bool
) -> Iterator[Tensor]:
    """Resize `old` planes in `blocks` [n, K, H, W] to `new` ones, a few at a time."""
    if old == new:
        yield from blocks
        return
    lower, upper, position = _neighbors(old, new, nearest=nearest)
    growth = math.ceil(new / old)
    done, received = 0, 0
    previous: list[Tensor] = []  # the last plane received, which the next new one may need
    for block in blocks:
        for part in torch.split(block, _at_once(growth, *block.shape[1:])):
            available = torch.cat([*previous, part])
            first = received - len(previous)
            received += len(part)
            stop = int((upper < received).sum())
            if stop > done:
                below = available[lower[done:stop] - first]
                above = available[upper[done:stop] - first]
                yield below.lerp_(above, position[done:stop].to(block.device))
                done = stop
            previous = [part[-1:].clone()]


def _resize_other_axes(planes: Tensor, size: Sequence[int], *, nearest: bool) -> Iterator[Tensor]:
    """Resize `planes` [n, K, H, W] to `size` (H, W) and yield them [n, H, W] class by class."""
    if tuple(planes.shape[2:]) == tuple(size):
        yield from planes.unbind(1)
        return
    for part in torch.split(planes, _at_once(len(planes), *size), dim=1):
        if nearest:  # the same labels as nearest after arg-max
            resized = resize_to_nearest(part, size)
        else:
            resized = F.interpolate(part, tuple(size), mode="bilinear", align_corners=False)
        yield from resized.unbind(1)


def _at_once(*shape: int) -> int:
    """Return how many float32 arrays of `shape` are resized at a time."""
    return max(1, BLOCK_BYTES // (4 * math.prod(shape)))


def _nearest(old: int, new: int) -> Tensor:
    """Return which of `old` points each of `new` ones takes, with aligned corners."""
    step = (old - 1) / (new - 1) if new > 1 else 0.0
    return (torch.arange(new, dtype=torch.float64) * step + 0.5).floor().long()


def _neighbors(old: int, new: int, *, nearest: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two of `old` planes that each of `new` ones lies between, and its position.

    The position [new, 1, 1, 1] is 0 at the lower one and 1 at the upper one.
    """
    if nearest:
        index = _nearest(old, new)
        return index, index, torch.zeros(new, 1, 1, 1)
    # In float32, as F.interpolate computes it.
    scale = torch.tensor(old / new, dtype=torch.float32)
    place = ((torch.arange(new) + 0.5) * scale - 0.5).clamp(min=0.0)
    lower = place.long()
    upper = (lower + 1).clamp(max=old - 1)
    return lower, upper, (place - lower).view(-1, 1, 1, 1)
