"""Which augmentation is applied to which images: weak is geometry, strong is intensity.

The settings are the published ones:

RGB images
    weak: flips and 90° turns (half of the samples), rotation by up to 20° (a quarter)
    strong: jitter 0.4, hue ±0.1, grayscale, blur
gray, MR and CT images in 2D
    weak: as RGB
    strong: jitter 0.5, blur
volumes
    weak: flips and 90° turns in plane
    strong: bias field (not of CT, which has none), gamma e^±0.5, blur (as TorchIO)

All channels of an image have the same geometry. Each has its own draws of intensity, as if it were
the only one; the three colors of RGB are one channel.

Shapes: B images, C channels, *S spatial axes (two or three).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from crkd_cli import world
from crkd_cli.augment.intensity import (
    bias_field,
    blur,
    gamma,
    jitter,
    recolor,
    value_range,
)
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


class ChannelTraits(NamedTuple):
    """What the strong view of a channel depends on."""

    modality: str  # RGB, gray, MR or CT
    bounded: bool  # values lie in [0, 1]; otherwise the range of every sample is kept


@dataclass(frozen=True)
class Policy:
    """The augmentation of one dataset, a function of its images and of a CPU generator.

    Each of several processes draws for the joint batch and uses its part, so that every image
    is augmented as it would be in a single process.
    """

    channels: Sequence[ChannelTraits]
    dims: int  # spatial axes of the network
    plane: tuple[int, int]  # the spatial axes in which images are turned

    def weak(
        self, image: Tensor, label: Tensor | None, generator: Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Apply one random geometry per sample to image [B, C, *S] and label [B, *S]."""
        count = len(image)
        choice = _uniform(count, 0.0, 1.0, generator)
        moves = _uniform((count, 3), 0.0, 1.0, generator) < 0.5
        degrees = _uniform(count, -MAX_DEGREES, MAX_DEGREES, generator)
        if self.dims == 2:
            moves &= (choice < 0.5).unsqueeze(1)
        image, label = self._flip_and_transpose(image, label, to_device(moves, image.device))

        rotated = torch.nonzero((choice >= 0.5) & (choice < 0.75)).flatten()
        if self.dims == 2 and len(rotated):
            image, label = self._rotate(image, label, rotated, degrees[rotated])
        return image, label

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
        chosen = _uniform(len(image), 0.0, 1.0, generator) < INTENSITY_PROBABILITY
        if self.dims == 2:
            return self._strong_2d(image, traits, chosen, generator)
        return self._strong_3d(image, traits, chosen, generator)

    def _flip_and_transpose(
        self, image: Tensor, label: Tensor | None, moves: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        image = flip_and_transpose(image, moves, self.plane)
        if label is not None:
            label = flip_and_transpose(label.unsqueeze(1), moves, self.plane).squeeze(1)
        return image, label

    def _rotate(
        self, image: Tensor, label: Tensor | None, index: Tensor, degrees: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Rotate the samples `index` [R] by `degrees` [R]."""
        index, degrees = to_device(index, image.device), to_device(degrees, image.device)
        rotated = rotate(image[index], degrees, self.plane, "bilinear")
        image = image.index_copy(0, index, rotated)
        if label is not None:
            rotated = rotate(label[index].unsqueeze(1).float(), degrees, self.plane, "nearest")
            label = label.index_copy(0, index, rotated.squeeze(1).to(label.dtype))
        return image, label

    def _strong_2d(
        self, image: Tensor, traits: ChannelTraits, chosen: Tensor, generator: Generator
    ) -> Tensor:
        """Jitter the samples that are `chosen` [B], then blur."""
        count = len(image)
        sigma = _uniform(count, *BLUR_SIGMA, generator)
        sigma = sigma * (_uniform(count, 0.0, 1.0, generator) < BLUR_PROBABILITY)
        sigma = to_device(sigma.unsqueeze(1).expand(-1, 2), image.device)
        return blur(self._jitter(image, traits, chosen, generator), sigma, BLUR_RADIUS_2D)

    def _strong_3d(
        self, image: Tensor, traits: ChannelTraits, chosen: Tensor, generator: Generator
    ) -> Tensor:
        """Apply a bias field and gamma to the samples that are `chosen` [B], then blur."""
        count = len(image)
        sigma = _uniform((count, 3), *BLUR_SIGMA, generator)
        sigma = sigma * (_uniform((count, 1), 0.0, 1.0, generator) < BLUR_PROBABILITY)
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
        drawn = [_uniform(count, 1.0 - strength, 1.0 + strength, generator) for _ in range(3)]
        factors = torch.where(chosen, torch.stack(drawn), 1.0)
        hue = torch.where(chosen, _uniform(count, -MAX_HUE, MAX_HUE, generator), 0.0)
        gray = _uniform(count, 0.0, 1.0, generator) < GRAY_PROBABILITY
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
        coefficients = _uniform((len(image), *powers), -limit, limit, generator)
        coefficients = coefficients * (degree <= BIAS_DEGREE)
        coefficients = coefficients * chosen.view(-1, *[1] * self.dims)
        return image * bias_field(image, to_device(coefficients, image.device))

    def _gamma(self, image: Tensor, chosen: Tensor, generator: Generator) -> Tensor:
        log_gamma = _uniform(len(image), -MAX_LOG_GAMMA, MAX_LOG_GAMMA, generator) * chosen
        return gamma(image, to_device(torch.exp(log_gamma), image.device))


def _uniform(shape: int | tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """Draw from [low, high); the first axis of `shape` counts the samples of this process."""
    count, *rest = (shape,) if isinstance(shape, int) else shape
    drawn = torch.rand(count * world.size(), *rest, generator=generator)
    return world.shard(drawn) * (high - low) + low
