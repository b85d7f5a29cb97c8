"""The policies: one geometry for image and label, intensity only in the strong view, a function of the generator alone."""

import pytest
import torch

from crkd_cli.augment.policy import Policy


def policy(dims: int, modality: str = "mr", *, bounded: bool = True) -> Policy:
    return Policy(modality, bounded, dims, (0, 1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_image_and_label_share_one_geometry(dims: int) -> None:
    torch.manual_seed(0)
    label = torch.zeros(16, *[24] * dims, dtype=torch.uint8)
    label[:, 4:12, 6:20] = 1
    image, turned = policy(dims).weak(label.unsqueeze(1).float(), label, generator())
    assert turned is not None
    assert ((image[:, 0] > 0.5) == (turned > 0)).float().mean() > 0.98    # edges of rotated boxes apart
    assert sum(not torch.equal(a, b) for a, b in zip(label, turned, strict=True)) >= 8


def test_weak_leaves_about_a_quarter_of_2d_images_alone() -> None:
    x = torch.rand(400, 1, 16, 16)
    weak, _ = policy(2).weak(x, None, generator())
    same = sum(torch.equal(a, b) for a, b in zip(x, weak, strict=True)) / 400
    assert same == pytest.approx(0.25 + 0.5 / 8, abs=0.08)    # nothing, or a turn that is the identity


@pytest.mark.parametrize(
    ("dims", "modality", "channels", "bounded"),
    [(2, "rgb", 3, True), (2, "gray", 1, True), (2, "mr", 1, False), (3, "mr", 1, False)],
)
def test_strong_changes_intensity_within_bounds(dims: int, modality: str, channels: int, bounded: bool) -> None:
    torch.manual_seed(0)
    x = torch.rand(12, channels, *[16] * dims)
    strong = policy(dims, modality, bounded=bounded).strong(x, generator())
    assert strong.shape == x.shape
    assert torch.isfinite(strong).all()
    changed = sum((a - b).abs().max() > 1e-4 for a, b in zip(x, strong, strict=True))
    assert 8 <= changed <= 12    # 0.9 of them on average
    if bounded:
        assert strong.min() >= -1e-6
        assert strong.max() <= 1 + 1e-6


def test_same_generator_same_augmentation(dims: int) -> None:
    x = torch.rand(4, 1, *[16] * dims)
    one, two, other = (policy(dims).strong(policy(dims).weak(x, None, generator(seed))[0], generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_constant_image_stays_finite(dims: int) -> None:
    x = torch.zeros(6, 1, *[16] * dims)
    assert torch.isfinite(policy(dims, bounded=False).strong(x, generator())).all()
