"""The flips of test-time mirroring: those that a network saw during training."""

from collections.abc import Sequence
from itertools import combinations

from crkd_cli.config import DataConfig
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import UsageError
from crkd_cli.runtime.checkpoint import Checkpoint


def flipped_axes(data: DataConfig, spec: DatasetSpec) -> tuple[int, ...]:
    """Return the axes of the frame along which training flips images.

    They are those of `data.mirror`; the published augmentation flips in the plane of slices only.
    """
    axes = data.mirrored_axes
    if data.augment == "published":
        axes = tuple(axis for axis in axes if axis in spec.plane(data.frame.dims))
    return axes


def common_flipped_axes(checkpoints: Sequence[Checkpoint]) -> tuple[int, ...]:
    """Return the axes along which all `checkpoints` saw flips. Raises UsageError if there is none.

    A network that never saw an image upside down predicts nonsense for it.
    """
    by_checkpoint = [flipped_axes(member.config.data, member.spec) for member in checkpoints]
    axes = set(by_checkpoint[0]).intersection(*by_checkpoint)
    if not axes:
        names = ", ".join(str(checkpoint.path) for checkpoint in checkpoints)
        raise UsageError(f"{names}: trained without flips (data.mirror); drop --tta")
    return tuple(sorted(axes))


def subsets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return all subsets of `axes`, the empty one first."""
    return [subset for size in range(len(axes) + 1) for subset in combinations(axes, size)]
