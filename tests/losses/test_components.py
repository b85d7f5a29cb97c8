"""The largest component against SciPy's labeling, for noise of every density and winding paths."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from crkd_cli.losses.components import largest_by_fastsv, largest_component
from crkd_cli.training.graph_safety import OperationRecorder


def check(masks: torch.Tensor) -> None:
    """Check both implementations: the result is one component of SciPy's, and none is larger."""
    for largest in (largest_component, largest_by_fastsv):
        for mask, component in zip(masks, largest(masks), strict=True):
            labels, _ = ndimage.label(mask.numpy(), np.ones((3,) * mask.ndim))
            sizes = np.bincount(labels.ravel(), minlength=2)[1:]
            assert int(component.sum()) == sizes.max()
            numbers = np.unique(labels[component.numpy()])
            assert len(numbers) == (sizes.max() > 0)
            assert 0 not in numbers


@pytest.mark.parametrize("density", [0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0])
def test_noise(density: float, dims: int) -> None:
    generator = torch.Generator().manual_seed(int(100 * density))
    check(torch.rand(3, *(48, 40, 24)[:dims], generator=generator) < density)


def test_winding_path(dims: int) -> None:
    """A path that winds through the whole image, and one that is interrupted in the middle."""
    path = torch.zeros(33, 32, dtype=torch.bool)
    path[::2] = True
    path[1::4, -1] = path[3::4, 0] = True
    interrupted = path.clone()
    interrupted[16] = False
    masks = torch.stack([path, interrupted, path.flip(0), path.flip(1)])
    if dims == 3:
        masks = torch.stack([masks, torch.zeros_like(masks), masks], dim=-1)
        masks[:, 0, 0, 1] = True  # two layers that are joined in one corner
    check(masks)


def test_on_a_gpu_it_can_be_captured_in_a_graph() -> None:
    """No operation waits for a value, and the next mask takes the same ones."""
    recorded = []
    for seed in (0, 1):
        mask = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(seed)) < 0.5
        with OperationRecorder() as recorder:
            largest_by_fastsv(mask)
        recorded.append(recorder.operations)
    assert recorded[0] == recorded[1]
