"""The strong view of volumes on a real LA scan, compared with NumPy and SciPy, and TorchIO."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from crkd_cli.augment.policy import ChannelTraits
from crkd_cli.augment.published import Published
from tests.augment.reference import strong_volume

pytestmark = pytest.mark.realdata

VIEWS = 600


@pytest.fixture
def scan(shared_data: Path) -> Tensor:
    """Every fifth voxel of the center of a normalized scan, [1, 23, 23, 18]."""
    file = sorted(shared_data.glob("la/*/*/mri_norm2.h5"))[0]
    with h5py.File(file) as content:
        volume = np.asarray(content["image"], np.float32)
    return torch.from_numpy(volume[20:132:5, 20:132:5, ::5].copy()).unsqueeze(0)


def median_correlation(scan: Tensor, view: Callable[[Tensor], Tensor]) -> float:
    """Return the median correlation of the voxels of many views with those of `scan`."""
    voxels = scan.flatten().numpy()
    views = (view(scan).flatten().numpy() for _ in range(VIEWS))
    return float(np.median([np.corrcoef(voxels, values)[0, 1] for values in views]))


def policy_correlation(scan: Tensor) -> float:
    traits = [ChannelTraits("MR", bounded=False)]
    policy = Published(traits, scan.shape[1:], (0, 1), (0, 1, 2), label_values=2)
    generator = torch.Generator().manual_seed(0)
    return median_correlation(scan, lambda x: policy.strong(x.unsqueeze(0), generator)[0])


def test_strong_view_is_as_strong_as_published(scan: Tensor) -> None:
    rng = np.random.default_rng(0)
    expected = median_correlation(
        scan, lambda x: torch.from_numpy(strong_volume(x[0].numpy(), rng))
    )
    assert policy_correlation(scan) == pytest.approx(expected, abs=0.03)


def test_strong_view_is_as_strong_as_that_of_torchio(scan: Tensor) -> None:
    torchio = pytest.importorskip("torchio", reason="TorchIO is in the dependency group bench")
    torch.manual_seed(0)
    bias_field, gamma = torchio.RandomBiasField(coefficients=0.5, order=3), torchio.RandomGamma(0.5)
    scanner = torchio.Compose([bias_field, gamma], p=0.8)  # both or neither
    view = torchio.Compose([scanner, torchio.RandomBlur(std=(0.1, 2.0), p=0.5)])
    assert policy_correlation(scan) == pytest.approx(median_correlation(scan, view), abs=0.03)
