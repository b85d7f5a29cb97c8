"""The largest component against scipy's labeling: noise at every density, and shapes whose ends are far apart."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from crkd_cli.losses.components import largest_by_fastsv, largest_component


def check(masks: torch.Tensor) -> None:
    """Each result, a CPU's way and a GPU's, is one whole component of scipy's, and none of scipy's is larger."""
    for mask, found in zip(
        [*masks, *masks], [*largest_component(masks), *largest_by_fastsv(masks)], strict=True
    ):
        labels, _ = ndimage.label(mask.numpy(), np.ones((3,) * mask.ndim))
        sizes = np.bincount(labels.ravel(), minlength=2)[1:]
        assert int(found.sum()) == sizes.max()
        numbers = np.unique(labels[found.numpy()])
        assert len(numbers) == (sizes.max() > 0)
        assert 0 not in numbers


@pytest.mark.parametrize("density", [0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0])
def test_noise(density: float, dims: int) -> None:
    generator = torch.Generator().manual_seed(int(100 * density))
    check(torch.rand(3, *(48, 40, 24)[:dims], generator=generator) < density)


def test_a_long_way(dims: int) -> None:
    """A path that goes to and fro, and one beside it that is broken in the middle."""
    path = torch.zeros(33, 32, dtype=torch.bool)
    path[::2] = True
    path[1::4, -1] = path[3::4, 0] = True
    broken = path.clone()
    broken[16] = False
    both = torch.stack([path, broken, path.flip(0), path.flip(1)])
    if dims == 3:
        both = torch.stack([both, torch.zeros_like(both), both], dim=-1)
        both[:, 0, 0, 1] = True  # two layers, joined in one corner
    check(both)
