"""The strong augmentation, for few labels: that of nnU-Net, with the published strong view.

labeled images
    geometry: rotation, scaling and flips; intensity: noise, blur, brightness, contrast, low
    resolution and gamma
unlabeled images, weak
    geometry, as labeled ones
unlabeled images, strong
    the weak view with the published changes of intensity, and noise and low resolution

Most transforms act on a few samples of a batch. Only these are processed: which ones is known on
the host, so that the device need not wait.

Rotation is in the plane if the other axis has far larger spacing. Flips are along the axes of
`mirror` only. All channels of an image have the same geometry; each has its own draws of intensity,
as if it were the only one; the three colors of RGB are one channel.

Source: Isensee et al., Nature Methods 2021, as in nnU-Net v2 and batchgeneratorsv2.

Shapes: B images, C channels, *S spatial axes (two or three), *Q those of the source.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from crkd_cli import world
from crkd_cli.augment.intensity import (
    blur,
    gamma_in_range,
    lower_resolution,
    per_sample,
    scale_contrast,
    statistics,
    value_range,
)
from crkd_cli.augment.policy import ChannelTraits, uniform
from crkd_cli.augment.published import Published
from crkd_cli.augment.spatial import (
    affine,
    affine_label,
    center_crop,
    flip,
    rotation_and_scale,
)
from crkd_cli.transfer import to_device

ROTATION_PROBABILITY = 0.2
MAX_DEGREES_IN_PLANE, MAX_DEGREES_ELONGATED, MAX_DEGREES_3D = 180.0, 15.0, 30.0
ELONGATED = 1.5  # ratio of the sides of a plane
SCALING_PROBABILITY, SCALING = 0.2, (0.7, 1.4)  # above 1, objects shrink
MARGIN = 8  # a source image is wider than the patch by 1/8 of it on each side
NOISE_PROBABILITY, MAX_NOISE = 0.1, 0.1  # in standard deviations of the channel
BLUR_PROBABILITY, BLUR_SIGMA, BLUR_RADIUS = 0.1, (0.5, 1.0), 3  # pixels
BRIGHTNESS_PROBABILITY, BRIGHTNESS = 0.15, (0.75, 1.25)
CONTRAST_PROBABILITY, CONTRAST = 0.15, (0.75, 1.25)
RESOLUTION_PROBABILITY, RESOLUTION = 0.125, (0.5, 1.0)
GAMMA_PROBABILITY, INVERTED_GAMMA_PROBABILITY, GAMMA = 0.3, 0.1, (0.7, 1.5)


class Geometry(NamedTuple):
    """The geometry of B samples, of which R are rotated or scaled; on the host."""

    flips: Tensor  # [B, axes of `mirror`] bool
    moved: Tensor  # [R] numbers of samples
    matrix: Tensor  # [R, d, d], see `affine`


class Noise(NamedTuple):
    """Noise of all samples of the joint batch; on the host."""

    sigma: Tensor  # [N·B] in standard deviations of the channel, 0 for none
    seed: int


class Intensity(NamedTuple):
    """Changes of intensity of a channel of B samples; on the host."""

    noise: Noise
    blur: Tensor  # [B, axes] sigma in pixels, 0 for none
    brightness: Tensor  # [B] factor, 1 for none
    contrast: Tensor  # [B] factor, 1 for none
    resolution: Tensor  # [B] scale, 1 for none
    inverted_gamma: Tensor  # [B] exponent, 1 for none
    gamma: Tensor  # [B] exponent, 1 for none


@dataclass(frozen=True)
class Strong(Published):
    """The augmentation of nnU-Net, with the published strong view."""

    @property
    def turned(self) -> tuple[int, ...]:
        """The axes along which images are rotated and scaled."""
        return self.plane if self.anisotropic else tuple(range(self.dims))

    @property
    def source_size(self) -> tuple[int, ...]:
        """The size of the patch, with a margin along the axes that are rotated."""
        size = list(self.size)
        for axis in self.turned:
            size[axis] += 2 * math.ceil(size[axis] / MARGIN)
        return tuple(size)

    def labeled(self, image: Tensor, label: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Augment image [B, C, *Q] and label [B, *Q]: [B, C, *S], [B, *S]."""
        geometry = self.draw_geometry(len(image), generator)
        label = self._move_label(label, geometry)
        image = self._move_image(image, geometry)
        colors = image.shape[1] // len(self.channels)
        channels = [
            self._change_channel(channel, traits, generator)
            for channel, traits in zip(
                torch.split(image, colors, dim=1), self.channels, strict=True
            )
        ]
        return torch.cat(channels, dim=1), label

    def weak(self, image: Tensor, generator: Generator) -> Tensor:
        """Apply one random geometry per sample to image [B, C, *Q]: [B, C, *S]."""
        return self._move_image(image, self.draw_geometry(len(image), generator))

    def _strong_channel(self, image: Tensor, traits: ChannelTraits, generator: Generator) -> Tensor:
        """Change a channel [B, 1, *S], or RGB [B, 3, *S], as published; add noise, lose detail."""
        image = super()._strong_channel(image, traits, generator)
        noise = draw_noise(len(image), generator)
        resolution = draw_resolution(len(image), generator)
        image = self._reduce(_add_noise(image, noise, traits), resolution)
        return _clip(image, traits)

    def draw_geometry(self, count: int, generator: Generator) -> Geometry:
        """Draw the geometry of `count` samples."""
        flips = uniform((count, self.dims), 0.0, 1.0, generator) < 0.5
        rotated = uniform(count, 0.0, 1.0, generator) < ROTATION_PROBABILITY
        scaled = uniform(count, 0.0, 1.0, generator) < SCALING_PROBABILITY
        angles = 1 if len(self.turned) == 2 else 3
        limit = self._max_degrees()
        degrees = uniform((count, angles), -limit, limit, generator) * rotated.unsqueeze(1)
        factor = torch.where(scaled, uniform(count, *SCALING, generator), 1.0)
        moved = torch.nonzero(rotated | scaled).flatten()
        matrix = rotation_and_scale(degrees[moved], factor[moved])
        return Geometry(flips[:, list(self.mirror)], moved, matrix)

    def _max_degrees(self) -> float:
        if len(self.turned) == 3:
            return MAX_DEGREES_3D
        first, second = (self.size[axis] for axis in self.turned)
        elongated = max(first, second) > ELONGATED * min(first, second)
        return MAX_DEGREES_ELONGATED if elongated else MAX_DEGREES_IN_PLANE

    def _move_image(self, image: Tensor, geometry: Geometry) -> Tensor:
        """Move image [B, C, *Q] to [B, C, *S]."""
        x = center_crop(image, self.size)
        if len(geometry.moved):
            moved = to_device(geometry.moved, x.device)
            values = affine(image[moved], geometry.matrix, self.size, self.turned)
            x = x.index_copy(0, moved, values)
        return self._flip(x, geometry.flips)

    def _move_label(self, label: Tensor, geometry: Geometry) -> Tensor:
        """Move label [B, *Q] to [B, *S]."""
        x = center_crop(label.unsqueeze(1), self.size).squeeze(1)
        if len(geometry.moved):
            moved = to_device(geometry.moved, x.device)
            values = affine_label(
                label[moved], geometry.matrix, self.size, self.turned, self.label_values
            )
            x = x.index_copy(0, moved, values)
        return self._flip(x.unsqueeze(1), geometry.flips).squeeze(1)

    def _flip(self, x: Tensor, flips: Tensor) -> Tensor:
        return flip(x, to_device(flips, x.device), self.mirror)

    def _change_channel(self, x: Tensor, traits: ChannelTraits, generator: Generator) -> Tensor:
        """Change the intensities of a channel [B, 1, *S] of labeled images, or of RGB."""
        draws = draw_intensity(len(x), self.dims, generator)
        x = _add_noise(x, draws.noise, traits)
        x = _change(x, draws.blur, 0.0, _blur)
        x = _change(x, draws.brightness, 1.0, partial(_scale_brightness, traits=traits))
        x = _change(x, draws.contrast, 1.0, _scale_contrast)
        x = self._reduce(x, draws.resolution)
        x = _change(x, draws.inverted_gamma, 1.0, _gamma_of_inverted)
        x = _change(x, draws.gamma, 1.0, gamma_in_range)
        return _clip(x, traits)

    def _reduce(self, x: Tensor, resolution: Tensor) -> Tensor:
        """Reduce the resolution of the samples whose scale in `resolution` [B] is below 1."""
        return _change(x, resolution, 1.0, partial(lower_resolution, axes=self.turned))


def draw_intensity(count: int, axes: int, generator: Generator) -> Intensity:
    """Draw changes of intensity for `count` samples with `axes` spatial axes."""
    return Intensity(
        noise=draw_noise(count, generator),
        blur=_draw_blur(count, axes, generator),
        brightness=_draw_factor(count, BRIGHTNESS_PROBABILITY, BRIGHTNESS, generator),
        contrast=_draw_factor(count, CONTRAST_PROBABILITY, CONTRAST, generator),
        resolution=draw_resolution(count, generator),
        inverted_gamma=_draw_factor(count, INVERTED_GAMMA_PROBABILITY, GAMMA, generator),
        gamma=_draw_factor(count, GAMMA_PROBABILITY, GAMMA, generator),
    )


def draw_noise(count: int, generator: Generator) -> Noise:
    """Draw noise for the samples of all processes, of which this one has `count`."""
    chosen, sigma = torch.rand(2, count * world.size(), generator=generator)
    seed = torch.randint(2**62, (1,), generator=generator)
    return Noise(sigma * MAX_NOISE * (chosen < NOISE_PROBABILITY), int(seed))


def draw_resolution(count: int, generator: Generator) -> Tensor:
    """Draw the scale to which the resolution of `count` samples is reduced."""
    chosen = uniform(count, 0.0, 1.0, generator) < RESOLUTION_PROBABILITY
    return torch.where(chosen, uniform(count, *RESOLUTION, generator), 1.0)


def _draw_blur(count: int, axes: int, generator: Generator) -> Tensor:
    chosen = uniform((count, 1), 0.0, 1.0, generator) < BLUR_PROBABILITY
    return uniform((count, axes), *BLUR_SIGMA, generator) * chosen


def _draw_factor(
    count: int, probability: float, limits: tuple[float, float], generator: Generator
) -> Tensor:
    """Draw from [low, 1] or [1, high], with equal chances, with `probability`; else return 1."""
    chosen = uniform(count, 0.0, 1.0, generator) < probability
    below = uniform(count, 0.0, 1.0, generator) < 0.5
    position = uniform(count, 0.0, 1.0, generator)
    low, high = limits
    factor = 1.0 + position * torch.where(below, low - 1.0, high - 1.0)
    return torch.where(chosen, factor, 1.0)


def _change(
    x: Tensor, values: Tensor, neutral: float, change: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Apply `change` to the samples of x [B, C, *S] whose `values` [B, …] are not `neutral`."""
    chosen = torch.nonzero((values != neutral).view(len(values), -1).any(1)).flatten()
    if not len(chosen):
        return x
    numbers = to_device(chosen, x.device)
    changed = change(x[numbers], to_device(values[chosen], x.device))
    return x.index_copy(0, numbers, changed)


def _add_noise(x: Tensor, noise: Noise, traits: ChannelTraits) -> Tensor:
    """Add noise to x [B, C, *S]: the same to the colors of RGB, so that gray stays gray."""
    first, last = world.rank() * len(x), (world.rank() + 1) * len(x)
    joint = torch.nonzero(noise.sigma).flatten()
    own = (joint >= first) & (joint < last)
    if not own.any():
        return x
    generator = torch.Generator(x.device).manual_seed(noise.seed)
    fields = torch.randn(len(joint), 1, *x.shape[2:], generator=generator, device=x.device)
    numbers = joint[own]
    fields = fields[int((joint < first).sum()) :][: len(numbers)]
    sigma = to_device(noise.sigma[numbers], x.device)
    chosen = to_device(numbers - first, x.device)
    _, unit = _units(x[chosen], traits)
    return x.index_copy(0, chosen, x[chosen] + fields * per_sample(sigma, x) * unit)


def _units(x: Tensor, traits: ChannelTraits) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of a channel, per sample or as normalized."""
    if traits.bounded:
        return statistics(x)
    return x.new_zeros(()), x.new_ones(())


def _scale_brightness(x: Tensor, factor: Tensor, traits: ChannelTraits) -> Tensor:
    """Scale values about the mean of the channel by factor [B]."""
    mean, _ = _units(x, traits)
    return (x - mean) * per_sample(factor, x) + mean


def _scale_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the contrast by factor [B], within the range of every sample."""
    return scale_contrast(x, factor, *value_range(x))


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    return blur(x, sigma, BLUR_RADIUS, mirror=True)


def _gamma_of_inverted(x: Tensor, exponent: Tensor) -> Tensor:
    return -gamma_in_range(-x, exponent)


def _clip(x: Tensor, traits: ChannelTraits) -> Tensor:
    return x.clamp(0.0, 1.0) if traits.modality == "RGB" else x
