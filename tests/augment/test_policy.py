"""Policies: one geometry for image and label, and a strong view that changes intensity only.

Both depend on nothing but the generator.
"""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from crkd_cli.augment.policy import ChannelTraits
from crkd_cli.augment.published import Published
from tests.augment.reference import bias_field, strong_volume


def published(traits: list[ChannelTraits], dims: int, **settings: Any) -> Published:
    axes = {"plane": (0, 1), "mirror": tuple(range(dims)), "label_values": 4}
    return Published(traits, size=(16,) * dims, **{**axes, **settings})


def policy(dims: int, modality: str = "MR", *, bounded: bool = True, **settings: Any) -> Published:
    return published([ChannelTraits(modality, bounded)], dims, **settings)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_image_and_label_share_one_geometry(dims: int) -> None:
    torch.manual_seed(0)
    label = torch.zeros(16, *[24] * dims, dtype=torch.uint8)
    label[:, 4:12, 6:20] = 1
    image, turned = policy(dims).labeled(label.unsqueeze(1).float(), label, generator())
    agreement = (image[:, 0] > 0.5) == (turned > 0)
    assert agreement.float().mean() > 0.98  # all but the edges of rotated boxes
    assert sum(not torch.equal(a, b) for a, b in zip(label, turned, strict=True)) >= 8


def test_weak_leaves_about_a_quarter_of_2d_images_alone() -> None:
    x = torch.rand(400, 1, 16, 16)
    weak = policy(2).weak(x, generator())
    same = sum(torch.equal(a, b) for a, b in zip(x, weak, strict=True)) / 400
    # Nothing was chosen, or a combination of flips and turns that is the identity.
    assert same == pytest.approx(0.25 + 0.5 / 8, abs=0.08)


@pytest.mark.parametrize(
    ("dims", "modality", "channels", "bounded"),
    [(2, "RGB", 3, True), (2, "gray", 1, True), (2, "MR", 1, False), (3, "MR", 1, False)],
)
def test_strong_changes_intensity_within_bounds(
    dims: int, modality: str, channels: int, bounded: bool
) -> None:
    torch.manual_seed(0)
    x = torch.rand(12, channels, *[16] * dims)
    strong = policy(dims, modality, bounded=bounded).strong(x, generator())
    assert strong.shape == x.shape
    assert torch.isfinite(strong).all()
    changed = sum((a - b).abs().max() > 1e-4 for a, b in zip(x, strong, strict=True))
    assert 8 <= changed <= 12  # 0.9 of them on average
    if bounded:
        assert strong.min() >= -1e-6
        assert strong.max() <= 1 + 1e-6


def test_same_generator_same_augmentation(dims: int) -> None:
    x = torch.rand(4, 1, *[16] * dims)

    def augment(seed: int) -> torch.Tensor:
        weak = policy(dims).weak(x, generator(seed))
        return policy(dims).strong(weak, generator(seed))

    assert torch.equal(augment(5), augment(5))
    assert not torch.equal(augment(5), augment(6))


def test_a_constant_image_stays_finite(dims: int) -> None:
    x = torch.zeros(6, 1, *[16] * dims)
    assert torch.isfinite(policy(dims, bounded=False).strong(x, generator())).all()


def scan(size: tuple[int, int, int] = (48, 48, 40)) -> torch.Tensor:
    """Make a normalized volume [1, *size] whose values are skewed like those of an MR scan."""
    rng = np.random.default_rng(0)
    volume = gaussian_filter(rng.standard_normal(size), 3.0)
    volume = np.exp(volume / volume.std()) + 0.1 * rng.random(size)
    return torch.from_numpy((volume - volume.mean()) / volume.std()).float().unsqueeze(0)


def similarity(weak: torch.Tensor, strong: torch.Tensor) -> list[float]:
    """Return median correlation, median RMS change and the spread of the correlation over views."""
    before, after = weak.flatten(1).double(), strong.flatten(1).double()
    pairs = torch.stack([before, after], dim=1)  # [N, 2, voxels]
    correlations = torch.tensor([float(torch.corrcoef(pair)[0, 1]) for pair in pairs])
    changes = (before - after).square().mean(1).sqrt()
    return [float(correlations.median()), float(changes.median()), float(correlations.std())]


@pytest.mark.slow
def test_the_strong_view_of_volumes_is_as_strong_as_the_published_one() -> None:
    """Compare distributions with NumPy and SciPy, which draw the parameters in another order."""
    weak = scan().expand(300, 1, -1, -1, -1)
    ours = policy(3, bounded=False).strong(weak, generator())
    rng = np.random.default_rng(1)
    volumes = [torch.from_numpy(strong_volume(view[0].numpy(), rng)) for view in weak]
    published = torch.stack(volumes).unsqueeze(1)
    correlation, change, spread = similarity(weak, ours)
    expected, expected_change, expected_spread = similarity(weak, published)
    assert correlation == pytest.approx(expected, abs=0.02)
    assert change == pytest.approx(expected_change, rel=0.15)
    assert spread == pytest.approx(expected_spread, rel=0.35)
    changed = ((weak - ours).flatten(1).abs().amax(1) > 1e-4).float().mean()
    assert changed == pytest.approx(0.9, abs=0.05)


def test_every_sample_of_a_strong_view_follows_the_formulas_of_torchio() -> None:
    """In NumPy with the same draws: x·exp(P), then sign(x)|x|^γ, then SciPy's Gaussian filter."""
    weak, count = scan((20, 24, 16)).expand(12, 1, -1, -1, -1), 12
    strong = policy(3, bounded=False).strong(weak, generator(3)).double().numpy()
    draws = generator(3)
    chosen = torch.rand(count, generator=draws) < 0.8
    sigma = 0.1 + 1.9 * torch.rand(count, 3, generator=draws)
    blurred = torch.rand(count, 1, generator=draws) < 0.5
    coefficients = torch.rand(count, 4, 4, 4, generator=draws) - 0.5
    exponent = torch.rand(count, generator=draws) - 0.5
    assert 0 < int(chosen.sum()) < count
    assert 0 < int(blurred.sum()) < count
    for n in range(count):
        x = weak[n, 0].double().numpy()
        if chosen[n]:
            x = x * bias_field(x.shape, coefficients[n].double().numpy())
            x = np.sign(x) * np.abs(x) ** np.exp(float(exponent[n]))
        if blurred[n]:
            x = gaussian_filter(x, sigma[n].tolist())
        np.testing.assert_allclose(strong[n, 0], x, rtol=1e-3, atol=1e-4)


def test_the_strong_view_of_ct_has_no_bias_field() -> None:
    """Values that depend on z alone still do so after gamma and blur."""
    x = torch.randn(30, 1, 12, 1, 1).expand(-1, -1, -1, 10, 10)
    strong = {
        modality: policy(3, modality, bounded=False).strong(x, generator())
        for modality in ("CT", "MR")
    }
    uneven = {name: view.flatten(3).std(3).flatten(1).amax(1) for name, view in strong.items()}
    assert uneven["CT"].max() < 1e-4
    assert (uneven["MR"] > 0.05).float().mean() > 0.6
    changed = (strong["CT"] - x).flatten(1).abs().amax(1) > 1e-4
    assert changed.float().mean() == pytest.approx(0.9, abs=0.15)


@pytest.mark.parametrize("modalities", [("CT", "MR"), ("MR", "MR", "gray")])
def test_channels_have_their_own_intensities_and_the_same_geometry(
    dims: int, modalities: tuple[str, ...]
) -> None:
    traits = [ChannelTraits(modality, bounded=False) for modality in modalities]
    several = published(traits, dims)
    x = torch.randn(40, 1, *[12] * dims).expand(-1, len(modalities), *[-1] * dims)
    weak = several.weak(x, generator())
    assert torch.equal(weak[:, :1].expand_as(weak), weak)
    strong = several.strong(weak, generator(1))
    first = published(traits[:1], dims).strong(weak[:, :1], generator(1))
    assert torch.equal(strong[:, :1], first)
    changes = (strong - weak).flatten(2).square().mean(2)
    assert torch.corrcoef(changes.T)[0, 1].abs() < 0.4
    assert 0.5 < (changes > 1e-8).float().mean() < 1


@pytest.mark.parametrize(("mirror", "expected"), [((), 1), ((0,), 2), ((1,), 2), ((0, 1), 8)])
def test_volumes_are_flipped_only_along_the_axes_of_mirror(
    mirror: tuple[int, ...], expected: int
) -> None:
    x = torch.arange(64.0).view(1, 1, 4, 4, 4).expand(200, -1, -1, -1, -1)
    weak = policy(3, mirror=mirror).weak(x, generator())
    assert len({tuple(view.flatten().tolist()) for view in weak}) == expected
    for view in weak:
        if 0 not in mirror:
            assert (view[0, 1:] > view[0, :-1]).all()  # the values rise along axis 0


def test_images_that_may_not_be_mirrored_are_only_rotated_by_small_angles() -> None:
    x = torch.zeros(200, 1, 16, 16)
    x[:, :, :, 8:] = 1
    weak = policy(2, mirror=()).weak(x, generator())
    assert (weak[:, 0, 8, 12] > 0.9).all()
    assert not torch.equal(weak, x)
