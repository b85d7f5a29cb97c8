"""Intensity: jitter, gamma, noise, blur, bias field, resolution. Applied to images only.

Every sample of a batch has its own parameters, which are tensors on the device of the images.

Shapes: B images, C channels, *S spatial axes (two or three).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from crkd_cli.transfer import to_device

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
SMALLEST = 1e-7  # below it, a standard deviation or range is that of a constant sample


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Reshape values [B] to broadcast against x [B, …]."""
    return values.view(-1, *[1] * (x.ndim - 1))


def value_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest value of every sample, each [B, 1, …]."""
    axes = tuple(range(1, x.ndim))
    return x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of every sample, each [B, 1, …]."""
    axes = tuple(range(1, x.ndim))
    deviation, mean = torch.std_mean(x, axes, correction=0, keepdim=True)
    return mean, deviation


def jitter(x: Tensor, brightness: Tensor, contrast: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Scale values from `low` by brightness [B], then about their mean by contrast [B].

    The result is clamped to [low, high].
    """
    x = ((x - low) * per_sample(brightness, x) + low).clamp(low, high)
    return scale_contrast(x, contrast, low, high)


def scale_contrast(x: Tensor, factor: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Scale values about the mean of their sample by factor [B], clamped to [low, high]."""
    mean = x.mean(tuple(range(1, x.ndim)), keepdim=True)
    return ((x - mean) * per_sample(factor, x) + mean).clamp(low, high)


def recolor(x: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Scale the chroma of RGB images by saturation [B] and turn it by hue [B], keeping the luma.

    x is [B, 3, *S] in [0, 1]; hue is a fraction of a full turn.
    """
    luma = to_device(torch.tensor(LUMA), x.device)
    gray = torch.einsum("bc...,c->b...", x, luma).unsqueeze(1)
    # A turn about the gray axis (Rodrigues' formula) is applied to the chroma x − gray. It adds
    # luma, which is removed again.
    angle = hue * (2.0 * torch.pi)
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    eye, third = torch.eye(3, device=x.device), torch.full((3, 3), 1.0 / 3.0, device=x.device)
    cross = torch.tensor(((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0))) / 3.0**0.5
    cross = to_device(cross, x.device)
    matrix = (cos * eye + sin * cross + (1.0 - cos) * third) * saturation.view(-1, 1, 1)
    matrix = matrix - (luma @ matrix).unsqueeze(1)
    return (gray + torch.einsum("bij,bj...->bi...", matrix, x - gray)).clamp(0.0, 1.0)


def gamma(x: Tensor, exponent: Tensor) -> Tensor:
    """Compute sign(x) · |x|^exponent with exponent [B], as TorchIO's RandomGamma does.

    Values keep their sign; 0 and ±1 do not change.
    """
    return x.sign() * x.abs() ** per_sample(exponent, x)


def gamma_in_range(x: Tensor, exponent: Tensor) -> Tensor:
    """Raise the values, scaled to [0, 1] by the range of their sample, to exponent [B].

    Every sample gets its mean and standard deviation back, as in nnU-Net's GammaTransform with
    `p_retain_stats` 1.
    """
    low, high = value_range(x)
    scale = (high - low).clamp(min=SMALLEST)
    changed = ((x - low) / scale) ** per_sample(exponent, x) * scale + low
    mean, deviation = statistics(x)
    new_mean, new_deviation = statistics(changed)
    return (changed - new_mean) * (deviation / new_deviation.clamp(min=SMALLEST)) + mean


def lower_resolution(x: Tensor, scale: Tensor, axes: Sequence[int]) -> Tensor:
    """Reduce the resolution of x [B, C, *S] along spatial `axes` to scale [B], keeping its size.

    A side of S pixels is reduced to round(scale · S), taking the nearest pixels, and enlarged
    again, interpolating linearly: the same as `interpolate` by "nearest-exact", then by "linear".
    """
    for axis in axes:
        x = _multiply(x, _resolution_matrix(scale, x.shape[axis + 2]), axis + 2)
    return x.contiguous()


def _resolution_matrix(scale: Tensor, side: int) -> Tensor:
    """Return [B, side, side]: row m holds the weights of the pixels that pixel m is made from."""
    reduced = (scale * side).round().unsqueeze(1)
    position = torch.arange(side, device=scale.device)
    last = reduced - 1.0
    coarse = ((position + 0.5) * (reduced / side) - 0.5).clamp(min=0.0).minimum(last)
    lower = coarse.floor()
    weight = (coarse - lower).unsqueeze(2)
    matrix = torch.zeros(len(scale), side, side, device=scale.device)
    for pixel, share in ((lower, 1.0 - weight), ((lower + 1.0).minimum(last), weight)):
        source = ((pixel + 0.5) * (side / reduced)).floor().long().unsqueeze(2)
        matrix.scatter_add_(2, source, share)
    return matrix


def noise(x: Tensor, sigma: float) -> Tensor:
    """Add Gaussian noise of standard deviation `sigma`, clamped to ±2 sigma."""
    return x + (sigma * torch.randn_like(x)).clamp(-2.0 * sigma, 2.0 * sigma)


def blur(
    x: Tensor, sigma: Tensor, radius: int, *, truncate: float = math.inf, mirror: bool = False
) -> Tensor:
    """Convolve x [B, C, *S] with a Gaussian whose width differs by sample and axis.

    Computed as one batched product with a banded matrix per axis, without a loop over samples.

    Args:
        x: images [B, C, *S].
        sigma: [B, axes] in pixels; 0 leaves an axis unchanged.
        radius: pixels after which the kernel ends.
        truncate: sigmas after which it ends, rounded to whole pixels.
        mirror: beyond the border, reflect the image with its edge pixel (SciPy's "reflect")
            instead of repeating the edge pixel (SciPy's "nearest").
    """
    for axis in range(2, x.ndim):
        weights = _kernels(sigma[:, axis - 2], x.shape[axis], radius, truncate)
        matrix = (_mirrored if mirror else _repeated)(weights, radius)
        x = _multiply(x, matrix, axis)
    return x.contiguous()


def _multiply(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply x [B, C, *S] along `axis` by the matrix [B, m, n] of every sample."""
    return torch.einsum("bc...n,bmn->bc...m", x.movedim(axis, -1), matrix).movedim(-1, axis)


def _kernels(sigma: Tensor, side: int, radius: int, truncate: float) -> Tensor:
    """Return [B, side, side + 2 radius]: row m holds the kernel centered on pixel m."""
    sigma = sigma.clamp(min=1e-3).view(-1, 1, 1)
    inside = torch.arange(side, device=sigma.device)
    padded = torch.arange(-radius, side + radius, device=sigma.device)
    distance = (inside.unsqueeze(1) - padded).float()
    reach = (truncate * sigma + 0.5).floor().clamp(max=radius)
    weights = torch.exp(-0.5 * (distance / sigma) ** 2) * (distance.abs() <= reach)
    return weights / weights.sum(2, keepdim=True)


def _repeated(weights: Tensor, radius: int) -> Tensor:
    """Add the weights beyond each edge to the edge pixel: [B, m, side + 2 r] → [B, m, side]."""
    matrix = weights[:, :, radius:-radius].clone()
    matrix[:, :, 0] += weights[:, :, :radius].sum(2)
    matrix[:, :, -1] += weights[:, :, -radius:].sum(2)
    return matrix


def _mirrored(weights: Tensor, radius: int) -> Tensor:
    """Add the weights beyond each edge to the pixels they mirror, in the shape of `_repeated`."""
    side = weights.shape[1]
    position = torch.arange(-radius, side + radius, device=weights.device) % (2 * side)
    source = torch.minimum(position, 2 * side - 1 - position)
    return torch.zeros_like(weights[:, :, :side]).index_add_(2, source, weights)


def bias_field(x: Tensor, coefficients: Tensor) -> Tensor:
    """Evaluate exp of a polynomial in coordinates from −1 to 1, one per sample, as [B, 1, *S].

    coefficients [B, n, n(, n)] are indexed by the power of each axis. The polynomial is
    contracted axis by axis, so a volume costs n multiplications per voxel and no basis is stored.
    """
    powers = torch.arange(coefficients.shape[1], device=x.device)
    field = coefficients
    for side in x.shape[2:]:
        basis = torch.linspace(-1.0, 1.0, side, device=x.device).unsqueeze(1) ** powers  # [side, n]
        field = torch.tensordot(field, basis, dims=([1], [1]))  # the first power axis → the last
    return field.exp().unsqueeze(1)
