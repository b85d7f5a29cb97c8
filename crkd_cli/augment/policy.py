"""Which augmentation suits which images: the weak one is geometry, the strong one intensity (published settings).

| images        | weak                                                           | strong                                        |
|---------------|----------------------------------------------------------------|-----------------------------------------------|
| RGB           | half: flips and 90° turns; a quarter: ±20°; a quarter: nothing | jitter 0.4, hue ±0.1, gray, blur              |
| gray, MR (2D) | the same                                                       | jitter 0.5, blur                              |
| volumes       | flips and 90° turns in plane                                   | bias field, gamma e^±0.5, blur (as TorchIO)   |

Letters: B batch, C channels, *S two or three spatial axes.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from crkd_cli import world
from crkd_cli.augment.intensity import bias_field, blur, gamma, jitter, recolor, span
from crkd_cli.augment.spatial import rotate, turn
from crkd_cli.transfer import to_device

DEGREES = 20.0  # largest rotation
SIGMA = (0.1, 2.0)  # blur, pixels
RADIUS, TRUNCATE = 6, 4.0  # where its kernel ends: in 2D in pixels, in 3D in sigmas
CHANCE, GRAY, BLUR = 0.8, 0.2, 0.5
ORDER, COEFFICIENT, GAMMA = (
    3,
    0.5,
    0.5,
)  # bias field: degree and largest coefficient; gamma: largest logarithm


@dataclass(frozen=True)
class Policy:
    """The augmentation of one data set: a function of its images and of a generator on the CPU, on any device.

    Of several processes each draws for the joint batch and uses its part: an image gets the same as in one process.
    """

    modality: str  # rgb, gray or mr
    bounded: bool  # values lie in [0, 1]; otherwise every sample's own range is kept
    dims: int  # spatial axes of the network
    plane: tuple[int, int]  # spatial axes of an image's plane: turns stay inside it

    def weak(
        self, image: Tensor, label: Tensor | None, generator: Generator
    ) -> tuple[Tensor, Tensor | None]:
        """image [B, C, *S] and label [B, *S] under one geometry drawn for each sample."""
        count = len(image)
        kind = _uniform(count, 0.0, 1.0, generator)
        moves = _uniform((count, 3), 0.0, 1.0, generator) < 0.5
        degrees = _uniform(count, -DEGREES, DEGREES, generator)
        if self.dims == 2:
            moves &= (kind < 0.5).unsqueeze(1)
        moves = to_device(moves, image.device)
        image = turn(image, moves, self.plane)
        if label is not None:
            label = turn(label.unsqueeze(1), moves, self.plane).squeeze(1)
        turned = torch.nonzero((kind >= 0.5) & (kind < 0.75)).flatten()
        if self.dims == 2 and len(turned):
            degrees = to_device(degrees[turned], image.device)
            turned = to_device(turned, image.device)
            image = image.index_copy(
                0, turned, rotate(image[turned], degrees, self.plane, "bilinear")
            )
            if label is not None:
                rotated = rotate(label[turned].unsqueeze(1).float(), degrees, self.plane, "nearest")
                label = label.index_copy(0, turned, rotated.squeeze(1).to(label.dtype))
        return image, label

    def strong(self, image: Tensor, generator: Generator) -> Tensor:
        """image [B, C, *S] with intensities changed; geometry stays."""
        count, device = len(image), image.device
        chosen = _uniform(count, 0.0, 1.0, generator) < CHANCE
        if self.dims == 2:
            sigma = _uniform(count, *SIGMA, generator)
            sigma = sigma * (_uniform(count, 0.0, 1.0, generator) < BLUR)
            image = self._jitter(image, chosen, generator)
            return blur(image, to_device(sigma.unsqueeze(1).expand(-1, 2), device), RADIUS)
        sigma = _uniform((count, 3), *SIGMA, generator)
        sigma = sigma * (_uniform((count, 1), 0.0, 1.0, generator) < BLUR)
        image = self._scanner(image, chosen, generator)
        radius = int(TRUNCATE * SIGMA[1] + 0.5)
        return blur(image, to_device(sigma, device), radius, truncate=TRUNCATE, mirror=True)

    def _jitter(self, image: Tensor, chosen: Tensor, generator: Generator) -> Tensor:
        count, device = len(image), image.device
        strength = 0.4 if self.modality == "rgb" else 0.5
        factors = torch.stack(
            [_uniform(count, 1.0 - strength, 1.0 + strength, generator) for _ in range(3)]
        )
        factors = torch.where(chosen, factors, 1.0)
        hue = to_device(torch.where(chosen, _uniform(count, -0.1, 0.1, generator), 0.0), device)
        gray = _uniform(count, 0.0, 1.0, generator) < GRAY
        factors[2, gray] = 0.0
        brightness, contrast, saturation = to_device(factors, device).unbind()
        low, high = (image.new_zeros(()), image.new_ones(())) if self.bounded else span(image)
        image = jitter(image, brightness, contrast, low, high)
        return recolor(image, saturation, hue) if self.modality == "rgb" else image

    def _scanner(self, image: Tensor, chosen: Tensor, generator: Generator) -> Tensor:
        """Multiply the samples that are `chosen` [B] by a random bias field, then apply a random gamma."""
        count, device = len(image), image.device
        powers = ORDER + 1
        degree = sum(torch.meshgrid(*[torch.arange(powers)] * self.dims, indexing="ij"))
        coefficients = _uniform(
            (count, *[powers] * self.dims), -COEFFICIENT, COEFFICIENT, generator
        ) * (degree <= ORDER)
        coefficients = coefficients * chosen.view(-1, *[1] * self.dims)
        exponent = torch.exp(_uniform(count, -GAMMA, GAMMA, generator) * chosen)
        # Both act about 0, which is the mean of a normalized volume, as TorchIO has it.
        return gamma(
            image * bias_field(image, to_device(coefficients, device)), to_device(exponent, device)
        )


def _uniform(shape: int | tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """Uniform in [low, high), of `shape`, whose first axis counts this process's samples."""
    count, *rest = (shape,) if isinstance(shape, int) else shape
    drawn = torch.rand(count * world.size(), *rest, generator=generator)
    return world.shard(drawn) * (high - low) + low
