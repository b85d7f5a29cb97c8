"""The strong view of volumes on a real LA scan, beside TorchIO's where that is installed."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from crkd_cli.augment.policy import Policy

pytestmark = pytest.mark.realdata

VIEWS = 50
PATCH = (112, 112, 80)


def crop(shared_data: Path) -> torch.Tensor:
    """The middle of a normalised scan, [1, *PATCH]."""
    file = sorted(shared_data.glob("la/*/*/mri_norm2.h5"))[0]
    with h5py.File(file) as content:
        volume = np.asarray(content["image"], np.float32)
    starts = [(side - patch) // 2 for side, patch in zip(volume.shape, PATCH, strict=True)]
    middle = tuple(slice(start, start + patch) for start, patch in zip(starts, PATCH, strict=True))
    return torch.from_numpy(volume[middle]).unsqueeze(0)


def median_correlation(weak: torch.Tensor, views: list[torch.Tensor]) -> float:
    """Median over views of the correlation of their voxels with those of `weak`."""
    found = [float(np.corrcoef(weak.flatten().numpy(), view.flatten().numpy())[0, 1]) for view in views]
    return float(np.median(found))


def test_the_strong_view_correlates_with_the_weak_one_as_published(shared_data: Path) -> None:
    weak = crop(shared_data)
    policy = Policy("mr", bounded=False, dims=3, plane=(0, 1))
    generator = torch.Generator().manual_seed(0)
    views = [policy.strong(weak.unsqueeze(0), generator)[0] for _ in range(VIEWS)]
    assert median_correlation(weak, views) == pytest.approx(0.90, abs=0.03)


def test_torchio_gives_the_same_correlation(shared_data: Path) -> None:
    torchio = pytest.importorskip("torchio", reason="TorchIO comes with the group bench")
    weak = crop(shared_data)
    torch.manual_seed(0)
    # With probability 0.8 both, which one Compose decides.
    scanner = torchio.Compose([torchio.RandomBiasField(coefficients=0.5, order=3), torchio.RandomGamma(0.5)], p=0.8)
    view = torchio.Compose([scanner, torchio.RandomBlur(std=(0.1, 2.0), p=0.5)])
    assert median_correlation(weak, [view(weak) for _ in range(VIEWS)]) == pytest.approx(0.90, abs=0.03)
