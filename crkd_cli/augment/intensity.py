"""Intensity: jitter, gamma, blur, bias field. Every sample of a batch has its own parameters; images only.

Letters: B batch, C channels, *S two or three spatial axes. Parameters are tensors on the images' device.
"""

import math

import torch
from torch import Tensor

from crkd_cli.transfer import to_device

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """values [B] shaped to broadcast against x [B, …]."""
    return values.view(-1, *[1] * (x.ndim - 1))


def span(x: Tensor) -> tuple[Tensor, Tensor]:
    """(lowest, highest) value of every sample, each [B, 1, …]."""
    axes = tuple(range(1, x.ndim))
    return x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)


def jitter(x: Tensor, brightness: Tensor, contrast: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values scaled by brightness [B] from `low`, then by contrast [B] about the mean; kept within [low, high]."""
    x = ((x - low) * per_sample(brightness, x) + low).clamp(low, high)
    mean = x.mean(tuple(range(1, x.ndim)), keepdim=True)
    return ((x - mean) * per_sample(contrast, x) + mean).clamp(low, high)


def recolor(x: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """RGB x [B, 3, *S] in [0, 1] with chroma scaled by saturation [B] and turned by hue [B] (of a full turn), luma kept."""
    luma = to_device(torch.tensor(LUMA), x.device)
    gray = torch.einsum("bc...,c->b...", x, luma).unsqueeze(1)
    # A turn about the gray axis (Rodrigues), applied to the chroma x − gray, whose luma is then removed again.
    angle = hue * (2.0 * torch.pi)
    cross = to_device(
        torch.tensor(((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0))) / 3.0**0.5, x.device
    )
    eye, third = torch.eye(3, device=x.device), torch.full((3, 3), 1.0 / 3.0, device=x.device)
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    matrix = (cos * eye + sin * cross + (1.0 - cos) * third) * saturation.view(-1, 1, 1)
    matrix = matrix - (luma @ matrix).unsqueeze(1)
    return (gray + torch.einsum("bij,bj...->bi...", matrix, x - gray)).clamp(0.0, 1.0)


def gamma(x: Tensor, exponent: Tensor) -> Tensor:
    """sign(x) · |x|^exponent [B]: values keep their sign, 0 and ±1 stay (TorchIO's RandomGamma)."""
    return x.sign() * x.abs() ** per_sample(exponent, x)


def noise(x: Tensor, sigma: float) -> Tensor:
    """x plus Gaussian noise of `sigma`, cut at two sigmas, drawn by torch's generator on x's device."""
    return x + (sigma * torch.randn_like(x)).clamp(-2.0 * sigma, 2.0 * sigma)


def blur(
    x: Tensor, sigma: Tensor, radius: int, *, truncate: float = math.inf, mirror: bool = False
) -> Tensor:
    """Convolve x [B, C, *S] with a Gaussian whose width differs by sample and axis.

    sigma [B, axes] in pixels; 0 leaves an axis unchanged. The kernel ends after `radius` pixels, and after
    `truncate` sigmas, rounded to whole pixels. Beyond the border the edge pixel repeats (SciPy's mode
    "nearest"); with `mirror` the image is reflected, edge pixel included (SciPy's "reflect").

    One batched product with a banded matrix per axis, so no loop over samples is needed.
    """
    for axis in range(2, x.ndim):
        weights = _kernels(sigma[:, axis - 2], x.shape[axis], radius, truncate)
        matrix = (_mirrored if mirror else _repeated)(weights, radius)
        x = torch.einsum("bc...n,bmn->bc...m", x.movedim(axis, -1), matrix).movedim(-1, axis)
    return x.contiguous()


def _kernels(sigma: Tensor, side: int, radius: int, truncate: float) -> Tensor:
    """[B, side, side + 2 radius]: row m holds the kernel centerd on pixel m of a padded line."""
    sigma = sigma.clamp(min=1e-3).view(-1, 1, 1)
    inside = torch.arange(side, device=sigma.device)
    padded = torch.arange(-radius, side + radius, device=sigma.device)
    distance = (inside.unsqueeze(1) - padded).float()
    reach = (truncate * sigma + 0.5).floor().clamp(max=radius)
    weights = torch.exp(-0.5 * (distance / sigma) ** 2) * (distance.abs() <= reach)
    return weights / weights.sum(2, keepdim=True)


def _repeated(weights: Tensor, radius: int) -> Tensor:
    """Add the weights beyond each edge to the edge's pixel: [B, side, side + 2 radius] → [B, side, side]."""
    matrix = weights[:, :, radius:-radius].clone()
    matrix[:, :, 0] += weights[:, :, :radius].sum(2)
    matrix[:, :, -1] += weights[:, :, -radius:].sum(2)
    return matrix


def _mirrored(weights: Tensor, radius: int) -> Tensor:
    """Add the weights beyond each edge to the pixels they reflect: [B, side, side + 2 radius] → [B, side, side]."""
    side = weights.shape[1]
    at = torch.arange(-radius, side + radius, device=weights.device) % (2 * side)
    source = torch.minimum(at, 2 * side - 1 - at)
    return torch.zeros_like(weights[:, :, :side]).index_add_(2, source, weights)


def bias_field(x: Tensor, coefficients: Tensor) -> Tensor:
    """exp of a polynomial in coordinates from −1 to 1: coefficients [B, n, n(, n)] of powers per axis → [B, 1, *S].

    Contracted axis by axis, so a volume costs n multiplications a voxel and no basis is stored.
    """
    powers = torch.arange(coefficients.shape[1], device=x.device)
    field = coefficients
    for side in x.shape[2:]:
        basis = torch.linspace(-1.0, 1.0, side, device=x.device).unsqueeze(1) ** powers  # [side, n]
        field = torch.tensordot(field, basis, dims=([1], [1]))  # that power axis → last
    return field.exp().unsqueeze(1)
