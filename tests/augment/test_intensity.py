"""Intensity augmentation against SciPy, explicit polynomials and identities.

Every sample has its own parameters.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from crkd_cli.augment.intensity import (
    LUMA,
    bias_field,
    blur,
    gamma,
    gamma_in_range,
    jitter,
    lower_resolution,
    recolor,
    scale_contrast,
    value_range,
)

ONE = torch.ones(1)


def test_blur_against_scipy(dims: int) -> None:
    """Blur as in 2D: one width for all axes, repeated edges, a kernel of 6 pixels on each side."""
    torch.manual_seed(0)
    x, sigma = torch.rand(3, 2, *(14, 17, 11)[:dims]), torch.tensor([0.0, 0.8, 2.0])
    blurred = blur(x, sigma.unsqueeze(1).expand(-1, dims), 6).numpy()
    np.testing.assert_allclose(blurred[0], x[0].numpy(), atol=1e-6)
    for sample in (1, 2):
        for channel in range(2):
            expected = gaussian_filter(
                x[sample, channel].numpy(), float(sigma[sample]), mode="nearest", radius=6
            )
            np.testing.assert_allclose(blurred[sample, channel], expected, atol=1e-5)


def test_blur_with_mirrored_edges_against_scipy(dims: int) -> None:
    """Blur as in 3D: one width per axis, a kernel of 4 sigmas, longer than one of the axes."""
    torch.manual_seed(0)
    x, sigma = torch.rand(4, 1, *(14, 5, 11)[:dims]), torch.empty(4, dims).uniform_(0.1, 2.0)
    blurred = blur(x, sigma, 8, truncate=4.0, mirror=True).numpy()
    for sample in range(4):
        expected = gaussian_filter(x[sample, 0].numpy(), sigma[sample].tolist(), truncate=4.0)
        np.testing.assert_allclose(blurred[sample, 0], expected, atol=1e-5)


def test_bias_field_is_the_exponential_of_the_polynomial(dims: int) -> None:
    torch.manual_seed(0)
    space = (5, 7, 4)[:dims]
    coefficients = torch.randn(2, *[3] * dims) * 0.1
    axes = torch.meshgrid(*[torch.linspace(-1, 1, side) for side in space], indexing="ij")
    for sample in range(2):
        total = torch.zeros(space)
        for powers in np.ndindex(*[3] * dims):
            term = coefficients[(sample, *powers)]
            for axis, power in zip(axes, powers, strict=True):
                term = term * axis**power
            total = total + term
        field = bias_field(torch.zeros(2, 1, *space), coefficients)[sample, 0]
        torch.testing.assert_close(field, total.exp())


def test_gamma_acts_on_the_magnitude_and_keeps_the_sign() -> None:
    x = torch.tensor([[[-2.0, 0.0, 3.0]], [[-2.0, 0.5, 4.0]]])
    expected = torch.tensor([[[-4.0, 0.0, 9.0]], [[-(2.0**0.5), 0.5**0.5, 2.0]]])
    torch.testing.assert_close(gamma(x, torch.tensor([2.0, 0.5])), expected)


def test_jitter_by_hand() -> None:
    x = torch.tensor([[[[0.2, 0.4]]], [[[0.2, 0.4]]]])
    low, high = torch.tensor([0.0, 1.0])
    jittered = jitter(x, torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.5]), low, high)
    torch.testing.assert_close(jittered, torch.tensor([[[[0.4, 0.8]]], [[[0.25, 0.35]]]]))
    assert jitter(x, torch.tensor([9.0, 9.0]), torch.ones(2), low, high).max() == 1.0


def test_recolor_identities() -> None:
    torch.manual_seed(0)
    x = 0.4 + 0.2 * torch.rand(1, 3, 6, 5)  # far from the bounds, so that nothing is clamped
    luma = torch.einsum("bchw,c->bhw", x, torch.tensor(LUMA))
    torch.testing.assert_close(recolor(x, ONE, 0 * ONE), x)
    torch.testing.assert_close(recolor(x, 0 * ONE, 0 * ONE), luma.unsqueeze(1).expand_as(x))
    turned = recolor(x, 0.5 * ONE, 0.1 * ONE)
    torch.testing.assert_close(torch.einsum("bchw,c->bhw", turned, torch.tensor(LUMA)), luma)
    assert (turned - x).abs().max() > 0.01
    torch.testing.assert_close(recolor(x, ONE, ONE), x, atol=1e-5, rtol=0)  # a full turn


@pytest.mark.parametrize("third", [1 / 3, 2 / 3])
def test_a_third_of_a_turn_permutes_the_chroma(third: float) -> None:
    """Red, green and blue are a third of a turn apart, so the channels of the chroma are permuted.

    Luma is restored afterwards.
    """
    x = torch.full((1, 3, 1, 1), 0.5)
    x[:, 0] += 0.1
    turned = recolor(x, ONE, third * ONE).flatten()
    assert int(turned.argmax()) == round(3 * third)


def test_gamma_in_range_keeps_mean_and_deviation(dims: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, *[8] * dims) * torch.tensor([0.1, 2.0, 30.0]).view(3, *[1] * (dims + 1))
    changed = gamma_in_range(x, torch.tensor([0.7, 1.5, 1.1]))
    for before, after in zip(x, changed, strict=True):
        torch.testing.assert_close(after.mean(), before.mean(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(after.std(), before.std(), atol=1e-6, rtol=1e-4)
        assert torch.equal(after.flatten().argsort(), before.flatten().argsort())
    constant = torch.full((1, 1, *[8] * dims), 3.0)
    torch.testing.assert_close(gamma_in_range(constant, torch.tensor([1.5])), constant)


def test_gamma_in_range_is_a_power_of_the_scaled_values() -> None:
    """Up to a linear function: the positions between the ends of the range are by hand."""
    x = torch.tensor([[[-1.0, 0.0, 1.0, 3.0]], [[0.0, 4.0, 8.0, 16.0]]])
    changed = gamma_in_range(x, torch.tensor([2.0, 0.5]))
    low, high = changed.amin(2, keepdim=True), changed.amax(2, keepdim=True)
    expected = torch.tensor([[[0.0, 1 / 16, 1 / 4, 1.0]], [[0.0, 0.5, 0.5**0.5, 1.0]]])
    torch.testing.assert_close((changed - low) / (high - low), expected)


def test_contrast_by_hand() -> None:
    x = torch.tensor([[[0.0, 2.0, 4.0]], [[0.0, 2.0, 4.0]]])
    changed = scale_contrast(x, torch.tensor([0.5, 1.25]), *value_range(x))
    torch.testing.assert_close(changed, torch.tensor([[[1.0, 2.0, 3.0]], [[0.0, 2.0, 4.0]]]))


def test_low_resolution_against_interpolate(dims: int) -> None:
    """With a scale per sample, and odd sides; the scale 1 is the identity."""
    torch.manual_seed(0)
    shape, scales = (20, 17, 11)[:dims], [0.5, 0.61, 0.77, 0.98, 1.0]
    x = torch.rand(len(scales), 2, *shape)
    reduced = lower_resolution(x, torch.tensor(scales), range(dims))
    for sample, scale, result in zip(x, scales, reduced, strict=True):
        size = [round(scale * side) for side in shape]
        coarse = F.interpolate(sample.unsqueeze(0), size, mode="nearest-exact")
        expected = F.interpolate(coarse, shape, mode=("bilinear", "trilinear")[dims - 2])
        torch.testing.assert_close(result, expected[0], atol=1e-5, rtol=0)
    assert torch.equal(reduced[-1], x[-1])


def test_low_resolution_leaves_the_other_axes_alone() -> None:
    x = torch.rand(1, 1, 6, 8, 8)
    reduced = lower_resolution(x, torch.tensor([0.5]), (1, 2))
    slices = lower_resolution(x[0].movedim(1, 0), torch.full((6,), 0.5), (0, 1))
    torch.testing.assert_close(reduced[0].movedim(1, 0), slices)
