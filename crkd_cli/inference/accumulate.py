"""Sums of overlapping windows, of which only the planes that later windows touch are kept.

Legend: K classes, D planes, H × W the size of a plane.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from crkd_cli.config import Frame
from crkd_cli.windows import Slices


class PlaneSums:
    """Weighted mean of the probabilities of windows over a case of D planes.

    After the K classes, a window may have `extra` values per voxel, which are averaged alike.

    Windows are added in the order of their first plane. The sums of `depth` planes are in memory,
    in a ring: plane z is at position z modulo `depth`.
    """

    def __init__(
        self,
        classes: int,
        shape: Sequence[int],
        depth: int,
        device: torch.device,
        extra: int = 0,
    ) -> None:
        """Start with zeros for a case of `shape` (D, H, W)."""
        planes, *sides = shape
        self._classes = classes
        self._sums = torch.zeros(min(depth, planes), classes + extra, *sides, device=device)
        self._finished = 0  # planes that were taken

    def add(self, window: Slices, probabilities: Tensor, weight: Tensor) -> None:
        """Add the `probabilities` [K, *window] of a window, weighted by `weight` [*window]."""
        planes, *sides = window
        for ring, part in self._positions(planes.start, planes.stop):
            sums = self._sums[(ring, slice(None), *sides)]
            sums.addcmul_(probabilities[:, part].transpose(0, 1), weight[part].unsqueeze(1))

    def take(self, stop: int) -> Iterator[Tensor]:
        """Yield the mean [n, K, H, W] of the next planes, up to `stop`, some at a time.

        A yielded tensor is valid until the next one is asked for.
        """
        for ring, _ in self._positions(self._finished, stop):
            planes = self._sums[ring]
            # Probabilities sum to one in every window, so their sum is the sum of the weights.
            yield planes.div_(planes[:, : self._classes].sum(1, keepdim=True))
            planes.zero_()
        self._finished = stop

    def _positions(self, start: int, stop: int) -> Iterator[tuple[slice, slice]]:
        """Yield where planes `start` to `stop` are in the ring, and among these planes."""
        depth, first = len(self._sums), start
        while first < stop:
            position = first % depth
            length = min(stop - first, depth - position)
            part = slice(first - start, first - start + length)
            yield slice(position, position + length), part
            first += length


def needed_depth(batches: Iterable[Sequence[Slices]]) -> int:
    """Return how many planes the windows of a batch span at most."""
    spans: list[int] = [batch[-1][0].stop - batch[0][0].start for batch in batches]
    return max(spans)


def window_geometry(
    frame: Frame, *, published: bool
) -> tuple[tuple[int, ...], tuple[int, ...], Tensor]:
    """Return patch, stride and weight [*patch] of the sliding window over volumes.

    With `published`, they are those of the published protocol. The window of a 2D network is one
    slice deep.
    """
    patch = frame.size
    stride = tuple(side // 2 for side in patch)
    if published:
        stride, weight = frame.stride or stride, torch.ones(patch)
    else:
        weight = gaussian(patch)
    if frame.dims == 2:
        return (1, *patch), (1, *stride), weight.unsqueeze(0)
    return patch, stride, weight


def gaussian(patch: Sequence[int]) -> Tensor:
    """Return window weights [*patch]: a Gaussian with sigma = side / 8, at least 1e-3.

    As in nnU-Net (Isensee et al., 2021) and MONAI.
    """
    weight: Tensor = torch.ones(())
    for side in patch:
        x = torch.arange(side) - (side - 1) / 2
        weight = weight.unsqueeze(-1) * torch.exp(-0.5 * (x / (side / 8)) ** 2)
    return weight.clamp_min(1e-3)
