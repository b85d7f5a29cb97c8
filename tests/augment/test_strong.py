"""The strong augmentation: what is drawn, and what it does to images and labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crkd_cli.augment.policy import ChannelTraits
from crkd_cli.augment.spatial import center_crop
from crkd_cli.augment.strong import Geometry, Intensity, Strong, draw_intensity

SIDES = (32, 24, 16)
VALUES = 4  # three classes and ignored pixels
MODES = ["2D", "3D", "anisotropic"]


def policy(mode: str, *modalities: str, **settings: Any) -> Strong:
    """Return a policy for MR (normalized) by default; of RGB and gray images, values are in [0, 1].

    Volumes are stacks of slices along their first axis.
    """
    dims = 2 if mode == "2D" else 3
    size = SIDES[:2] if dims == 2 else (SIDES[2], *SIDES[:2])
    traits = [ChannelTraits(name, name in ("RGB", "gray")) for name in modalities or ("MR",)]
    axes = {"size": size, "plane": (dims - 2, dims - 1), "mirror": tuple(range(dims))}
    anisotropic = mode == "anisotropic"
    defaults = {**axes, "label_values": VALUES, "anisotropic": anisotropic}
    return Strong(traits, **{**defaults, **settings})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shells(size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return a smooth image [1, *size] and the label [*size] that its thresholds give.

    Values fall from 1 off the center to 0, without any symmetry, and lie between 0.2 and 0.4 only
    on the sphere of class 1, and so on.
    """
    axes = [torch.linspace(-1, 1, side) for side in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    center = torch.tensor([0.1, -0.2, 0.15][: len(size)]).view(-1, *[1] * len(size))
    width = torch.tensor([0.7, 1.0, 0.8][: len(size)]).view(-1, *[1] * len(size))
    image = (1.0 - ((grid - center) / width).norm(dim=0)).clamp(min=0.0)
    return image.unsqueeze(0), threshold(image)


def threshold(image: Tensor) -> Tensor:
    return (image * VALUES).long().clamp(max=VALUES - 1).to(torch.uint8)


@pytest.mark.parametrize("mode", MODES)
def test_image_and_label_move_together(mode: str) -> None:
    size, count = ((160, 128), 16) if mode == "2D" else ((40, 32, 24), 6)
    strong = policy(mode, size=size)
    image, label = shells(strong.source_size)
    image = image.expand(count, -1, *[-1] * strong.dims)
    label = label.expand(count, *[-1] * strong.dims)
    weak = strong.weak(image, generator())
    _, moved = strong.labeled(image, label, generator())
    assert moved.shape == (count, *strong.size)
    expected = threshold(weak[:, 0])
    for value in range(VALUES):
        ours, truth = moved == value, expected == value
        agreement = (ours & truth).sum() / (ours | truth).sum()
        assert agreement > (0.99 if mode == "2D" else 0.94)  # of shells 8 or 3 pixels thick
    center = center_crop(label.unsqueeze(1), strong.size).squeeze(1)
    assert (center != moved).flatten(1).any(1).float().mean() > 0.7


@pytest.mark.parametrize("mode", MODES)
def test_images_without_a_change_of_intensity_are_those_of_the_weak_view(mode: str) -> None:
    """The geometry of both is that of the draws; about a third have no other change."""
    strong, count = policy(mode), 40
    image, label = shells(strong.source_size)
    images = image.expand(count, -1, *[-1] * strong.dims)
    draws = generator()
    labeled, _ = strong.labeled(images, label.expand(count, *label.shape), draws)
    weak = strong.weak(images, generator())
    draws = generator()
    strong.draw_geometry(count, draws)
    unchanged = torch.tensor(neutral(draw_intensity(count, strong.dims, draws)))
    assert torch.equal(labeled[unchanged], weak[unchanged])
    assert 0.1 < unchanged.float().mean() < 0.6
    changes = (labeled - weak)[~unchanged].flatten(1).abs().amax(1)
    assert (changes > 1e-4).float().mean() > 0.9


def neutral(draws: Intensity) -> list[bool]:
    """Return for each sample whether its intensities do not change."""
    factors = torch.stack(draws[2:])
    return ((factors == 1).all(0) & (draws.noise.sigma == 0) & (draws.blur == 0).all(1)).tolist()


@pytest.mark.parametrize("mode", MODES)
def test_strong_views_without_a_change_of_intensity_are_the_weak_ones(mode: str) -> None:
    """The published change is left out with chances of 0.2 and 0.5, noise and resolution too."""
    weak = torch.randn(200, 1, *[8] * (2 if mode == "2D" else 3))
    views = policy(mode, size=weak.shape[2:]).strong(weak, generator())
    unchanged = (views - weak).flatten(1).abs().amax(1) < 1e-5
    assert unchanged.float().mean() == pytest.approx(0.2 * 0.5 * 0.9 * 0.875, abs=0.03)


@pytest.mark.parametrize("mode", MODES)
def test_the_geometry_is_drawn_with_the_probabilities_of_nnunet(mode: str) -> None:
    count = 4000
    draws = policy(mode, size=(16, 16) if mode == "2D" else (16, 16, 16)).draw_geometry(
        count, generator()
    )
    assert draws.flips.float().mean(0).tolist() == pytest.approx(
        [0.5] * draws.flips.shape[1], abs=0.02
    )
    assert len(draws.moved) / count == pytest.approx(1 - 0.8 * 0.8, abs=0.02)
    factor = draws.matrix.norm(dim=1)[:, 0]
    cosine = draws.matrix.diagonal(dim1=1, dim2=2).amin(1) / factor
    scaled, rotated = (factor - 1).abs() > 1e-5, cosine < 1 - 1e-6
    assert scaled.sum() / count == pytest.approx(0.2, abs=0.02)
    assert rotated.sum() / count == pytest.approx(0.2, abs=0.02)
    assert factor[scaled].min() == pytest.approx(0.7, abs=0.02)
    assert factor[scaled].max() == pytest.approx(1.4, abs=0.02)
    assert factor[scaled].mean() == pytest.approx(1.05, abs=0.02)
    if mode == "3D":  # by up to 30° about each axis: cos² − sin³ if all signs are the worst
        assert 0.75 - 0.125 < cosine.min() < 0.75
    else:
        assert cosine.min() == pytest.approx(-1, abs=0.001)


def test_elongated_images_are_rotated_by_small_angles() -> None:
    draws = policy("2D", size=(64, 32)).draw_geometry(2000, generator())
    factor = draws.matrix.norm(dim=1)[:, 0]
    cosine = draws.matrix[:, 0, 0] / factor
    assert cosine.min() == pytest.approx(np.cos(np.pi / 12), abs=0.001)


def test_intensities_are_drawn_with_the_probabilities_of_nnunet() -> None:
    count = 4000
    draws = draw_intensity(count, 3, generator())
    noise, blur = draws.noise.sigma, draws.blur
    assert (noise > 0).float().mean() == pytest.approx(0.1, abs=0.02)
    assert noise[noise > 0].mean() == pytest.approx(0.05, abs=0.005)
    assert noise.max() <= 0.1
    assert (blur > 0).float().mean(0).tolist() == pytest.approx([0.1] * 3, abs=0.02)
    assert blur[blur > 0].aminmax() == pytest.approx((0.5, 1.0), abs=0.02)
    expected = {
        "brightness": (0.15, 0.75, 1.25),
        "contrast": (0.15, 0.75, 1.25),
        "inverted_gamma": (0.1, 0.7, 1.5),
        "gamma": (0.3, 0.7, 1.5),
    }
    for name, (probability, low, high) in expected.items():
        factor = getattr(draws, name)
        assert (factor != 1).float().mean() == pytest.approx(probability, abs=0.02)
        assert factor.aminmax() == pytest.approx((low, high), abs=0.02)
        assert (factor[factor != 1] < 1).float().mean() == pytest.approx(0.5, abs=0.06)
        assert factor[factor > 1].mean() == pytest.approx((1 + high) / 2, abs=0.03)
    resolution = draws.resolution
    assert (resolution < 1).float().mean() == pytest.approx(0.125, abs=0.02)
    assert resolution[resolution < 1].aminmax() == pytest.approx((0.5, 1.0), abs=0.02)


@pytest.mark.parametrize("mirror", [(), (1,), (0, 2)])
def test_images_are_flipped_only_along_the_axes_of_mirror(mirror: tuple[int, ...]) -> None:
    strong = policy("3D", size=(4, 4, 4), mirror=mirror)
    x = torch.arange(6.0**3).view(1, 1, 6, 6, 6).expand(200, -1, -1, -1, -1)
    weak = strong.weak(x, generator())
    kept = unmoved(strong.draw_geometry(200, generator()), 200)
    assert len({tuple(view.flatten().tolist()) for view in weak[kept]}) == 2 ** len(mirror)
    for axis in range(3):
        rising = (weak[kept].diff(dim=axis + 2) > 0).flatten(1).all(1)
        assert rising.float().mean() == pytest.approx(0.5 if axis in mirror else 1, abs=0.1)


def unmoved(geometry: Geometry, count: int) -> Tensor:
    """Return which samples are neither rotated nor scaled, as bool [B]."""
    return torch.ones(count, dtype=torch.bool).index_fill(0, geometry.moved, False)


def test_anisotropic_volumes_are_turned_within_their_slices() -> None:
    strong = policy("anisotropic", mirror=())
    assert strong.source_size == (16, 40, 30)
    ramp = torch.arange(1.0, 17.0).view(1, 1, 16, 1, 1).expand(12, 1, *strong.source_size)
    weak = strong.weak(ramp, generator())
    torch.testing.assert_close(weak[:, :, :, 16, 12], ramp[:, :, :, 0, 0])
    assert policy("3D").source_size == (20, 40, 30)
    turned = policy("3D", mirror=()).weak(ramp, generator())
    assert (turned[:, :, :, 16, 12] - ramp[:, :, :, 0, 0]).abs().max() > 1


@pytest.mark.parametrize("modality", ["MR", "gray", "RGB"])
def test_noise_is_a_share_of_the_deviation_of_the_channel(modality: str) -> None:
    """Of a normalized channel, that is 1; of the values in [0, 1], it is that of the image."""
    strong, count = policy("2D", modality, mirror=()), 300
    colors = 3 if modality == "RGB" else 1
    image = 0.4 + 0.2 * (torch.arange(32.0) % 2).view(32, 1).expand(count, colors, 32, 24)
    image = image.contiguous()
    draws = generator()
    labeled, _ = strong.labeled(image, torch.zeros(count, 32, 24), draws)
    draws = generator()
    kept = unmoved(strong.draw_geometry(count, draws), count)
    intensity = draw_intensity(count, 2, draws)
    sigma = intensity.noise.sigma
    alone = kept & torch.tensor(
        neutral(intensity._replace(noise=intensity.noise._replace(sigma=0 * sigma)))
    )
    noisy = alone & (sigma > 0)
    assert noisy.sum() >= 3
    noise = (labeled - image)[noisy]
    unit = 1.0 if modality == "MR" else 0.1
    measured = noise[:, 0].flatten(1).std(1)
    torch.testing.assert_close(measured, sigma[noisy] * unit, rtol=0.06, atol=0)
    assert torch.equal(noise, noise[:, :1].expand_as(noise))
    assert torch.corrcoef(noise[:, 0].flatten(1)).fill_diagonal_(0).abs().max() < 0.1
    assert torch.equal(labeled[alone & (sigma == 0)], image[alone & (sigma == 0)])


def test_gray_pixels_of_color_images_stay_gray() -> None:
    strong, count = policy("2D", "RGB", mirror=()), 60
    torch.manual_seed(0)
    image = torch.rand(count, 3, 32, 24)
    image[..., :12] = image[:, :1, :, :12]
    labeled, _ = strong.labeled(image, torch.zeros(count, 32, 24), generator())
    kept = unmoved(strong.draw_geometry(count, generator()), count)
    gray = labeled[kept][..., :8]  # beyond, the colors are blurred into it
    assert (gray - gray[:, :1]).abs().max() < 1e-5
    assert ((labeled - image)[kept].flatten(1).abs().amax(1) > 1e-3).float().mean() > 0.4
    for view in (labeled, strong.strong(image, generator())):
        assert view.min() >= 0
        assert view.max() <= 1


def test_channels_have_their_own_intensities_and_the_same_geometry() -> None:
    strong, count = policy("3D", "CT", "MR", size=(12, 12, 12)), 60
    image = torch.randn(count, 1, 12, 12, 12).expand(-1, 2, -1, -1, -1)
    labeled, _ = strong.labeled(image, torch.zeros(count, 12, 12, 12), generator())
    weak = strong.weak(image, generator())
    assert torch.equal(weak[:, 0], weak[:, 1])
    changed = (labeled - weak).flatten(2).abs().amax(2) > 1e-5
    assert 0.4 < changed.float().mean() < 0.9
    assert (changed[:, 0] != changed[:, 1]).float().mean() > 0.2


@pytest.mark.parametrize("mode", MODES)
def test_the_views_depend_on_nothing_but_the_generator(mode: str) -> None:
    strong = policy(mode)
    x, label = shells(strong.source_size)
    x, label = x.expand(6, *x.shape), label.expand(6, *label.shape)

    def views(seed: int) -> list[Tensor]:
        draws = generator(seed)
        image, moved = strong.labeled(x, label, draws)
        weak = strong.weak(x, draws)
        torch.rand(3)  # of the global generator
        return [image, moved, weak, strong.strong(weak, draws)]

    for first, second in zip(views(5), views(5), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(views(5)[0], views(6)[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("modality", ["MR", "gray"])
def test_a_constant_image_stays_finite(mode: str, modality: str) -> None:
    strong = policy(mode, modality, size=(8, 8) if mode == "2D" else (8, 8, 8))
    x = torch.zeros(100, 1, *strong.source_size)
    labeled, _ = strong.labeled(x, x[:, 0].byte(), generator())
    assert torch.isfinite(labeled).all()
    assert torch.isfinite(strong.strong(strong.weak(x, generator()), generator())).all()
