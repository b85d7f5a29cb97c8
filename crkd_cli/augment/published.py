"""The published augmentation: weak views differ in geometry, strong ones in intensity as well.

RGB images
    weak: flips and 90° turns (half of the samples), rotation by up to 20° (a quarter)
    strong: jitter 0.4, hue ±0.1, grayscale, blur
gray, MR and CT images in 2D
    weak: as RGB
    strong: jitter 0.5, blur
volumes
    weak: flips and 90° turns in plane
    strong: bias field (not of CT, which has none), gamma e^±0.5, blur (as TorchIO)

Images are flipped only along the axes of `mirror`, and turned by 90° only if these are all axes of
the plane.

All channels of an image have the same geometry. Each has its own draws of intensity, as if it were
the only one; the three colors of RGB are one channel.

Shapes: B images, C channels, *S spatial axes (two or three).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from crkd_cli.augment.intensity import (
    bias_field,
    blur,
    gamma,
    jitter,
    recolor,
    value_range,
)
from crkd_cli.augment.policy import ChannelTraits, Policy, uniform
from crkd_cli.augment.spatial import flip_and_transpose, rotate
from crkd_cli.transfer import to_device

MAX_DEGREES = 20.0
INTENSITY_PROBABILITY = 0.8  # of jitter in 2D, of bias field and gamma in 3D
MAX_HUE = 0.1  # of a full turn
GRAY_PROBABILITY = 0.2
BLUR_PROBABILITY = 0.5
BLUR_SIGMA = (0.1, 2.0)  # pixels
BLUR_RADIUS_2D = 6  # pixels
BLUR_TRUNCATE_3D = 4.0  # sigmas
BIAS_DEGREE = 3  # of the polynomial
MAX_BIAS_COEFFICIENT = 0.5
MAX_LOG_GAMMA = 0.5


class _Geometry(NamedTuple):
    """The moves of B samples, of which R are rotated."""

    moves: Tensor  # [B, 3], see `flip_and_transpose`
    rotated: Tensor  # [R] numbers of samples
    degrees: Tensor  # [R]


@dataclass(frozen=True)
class Published(Policy):
    """The augmentation that the authors of the methods use."""

    def labeled(self, image: Tensor, label: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Apply one random geometry per sample to image [B, C, *S] and label [B, *S]."""
        geometry = self._draw_geometry(len(image), generator)
        label = self._move(label.unsqueeze(1), geometry, "nearest").squeeze(1)
        return self._move(image, geometry, "bilinear"), label

    def weak(self, image: Tensor, generator: Generator) -> Tensor:
        """Apply one random geometry per sample to image [B, C, *S]."""
        return self._move(image, self._draw_geometry(len(image), generator), "bilinear")

    def strong(self, image: Tensor, generator: Generator) -> Tensor:
        """Change the intensities of image [B, C, *S] and leave its geometry alone."""
        if len(self.channels) == 1:
            return self._strong_channel(image, self.channels[0], generator)
        views = [
            self._strong_channel(channel, traits, generator)
            for channel, traits in zip(torch.split(image, 1, dim=1), self.channels, strict=True)
        ]
        return torch.cat(views, dim=1)

    def _strong_channel(self, image: Tensor, traits: ChannelTraits, generator: Generator) -> Tensor:
        """Change the intensities of a channel [B, 1, *S], or of RGB [B, 3, *S]."""
        chosen = uniform(len(image), 0.0, 1.0, generator) < INTENSITY_PROBABILITY
        if self.dims == 2:
            return self._strong_2d(image, traits, chosen, generator)
        return self._strong_3d(image, traits, chosen, generator)

    def _draw_geometry(self, count: int, generator: Generator) -> "_Geometry":
        choice = uniform(count, 0.0, 1.0, generator)
        moves = uniform((count, 3), 0.0, 1.0, generator) < 0.5
        degrees = uniform(count, -MAX_DEGREES, MAX_DEGREES, generator)
        flips = [axis in self.mirror for axis in self.plane]
        moves &= torch.tensor([*flips, all(flips)])
        chosen = torch.zeros(count, dtype=torch.bool)
        if self.dims == 2:
            moves &= (choice < 0.5).unsqueeze(1)
            chosen = (choice >= 0.5) & (choice < 0.75)
        rotated = torch.nonzero(chosen).flatten()
        return _Geometry(moves, rotated, degrees[rotated])

    def _move(self, x: Tensor, geometry: "_Geometry", mode: str) -> Tensor:
        """Move x [B, C, *S], interpolating by `mode` where it is rotated."""
        moves, rotated, degrees = (to_device(part, x.device) for part in geometry)
        x = flip_and_transpose(x, moves, self.plane)
        if not len(rotated):
            return x
        values = rotate(x[rotated].float(), degrees, self.plane, mode)
        return x.index_copy(0, rotated, values.to(x.dtype))

    def _strong_2d(
        self, image: Tensor, traits: ChannelTraits, chosen: Tensor, generator: Generator
    ) -> Tensor:
        """Jitter the samples that are `chosen` [B], then blur."""
        count = len(image)
        sigma = uniform(count, *BLUR_SIGMA, generator)
        sigma = sigma * (uniform(count, 0.0, 1.0, generator) < BLUR_PROBABILITY)
        sigma = to_device(sigma.unsqueeze(1).expand(-1, 2), image.device)
        return blur(self._jitter(image, traits, chosen, generator), sigma, BLUR_RADIUS_2D)

    def _strong_3d(
        self, image: Tensor, traits: ChannelTraits, chosen: Tensor, generator: Generator
    ) -> Tensor:
        """Apply a bias field and gamma to the samples that are `chosen` [B], then blur."""
        count = len(image)
        sigma = uniform((count, 3), *BLUR_SIGMA, generator)
        sigma = sigma * (uniform((count, 1), 0.0, 1.0, generator) < BLUR_PROBABILITY)
        # Both act about 0, the mean of a normalized volume, as in TorchIO.
        if traits.modality != "CT":
            image = self._add_bias(image, chosen, generator)
        image = self._gamma(image, chosen, generator)
        radius = int(BLUR_TRUNCATE_3D * BLUR_SIGMA[1] + 0.5)
        sigma = to_device(sigma, image.device)
        return blur(image, sigma, radius, truncate=BLUR_TRUNCATE_3D, mirror=True)

    def _jitter(
        self, image: Tensor, traits: ChannelTraits, chosen: Tensor, generator: Generator
    ) -> Tensor:
        """Change brightness and contrast, and the color of RGB images."""
        count, device = len(image), image.device
        strength = 0.4 if traits.modality == "RGB" else 0.5
        drawn = [uniform(count, 1.0 - strength, 1.0 + strength, generator) for _ in range(3)]
        factors = torch.where(chosen, torch.stack(drawn), 1.0)
        hue = torch.where(chosen, uniform(count, -MAX_HUE, MAX_HUE, generator), 0.0)
        gray = uniform(count, 0.0, 1.0, generator) < GRAY_PROBABILITY
        factors[2, gray] = 0.0
        brightness, contrast, saturation = to_device(factors, device).unbind()

        if traits.bounded:
            low, high = image.new_zeros(()), image.new_ones(())
        else:
            low, high = value_range(image)
        image = jitter(image, brightness, contrast, low, high)
        if traits.modality == "RGB":
            image = recolor(image, saturation, to_device(hue, device))
        return image

    def _add_bias(self, image: Tensor, chosen: Tensor, generator: Generator) -> Tensor:
        powers = [BIAS_DEGREE + 1] * self.dims
        degree = sum(torch.meshgrid(*map(torch.arange, powers), indexing="ij"))
        limit = MAX_BIAS_COEFFICIENT
        coefficients = uniform((len(image), *powers), -limit, limit, generator)
        coefficients = coefficients * (degree <= BIAS_DEGREE)
        coefficients = coefficients * chosen.view(-1, *[1] * self.dims)
        return image * bias_field(image, to_device(coefficients, image.device))

    def _gamma(self, image: Tensor, chosen: Tensor, generator: Generator) -> Tensor:
        log_gamma = uniform(len(image), -MAX_LOG_GAMMA, MAX_LOG_GAMMA, generator) * chosen
        return gamma(image, to_device(torch.exp(log_gamma), image.device))
