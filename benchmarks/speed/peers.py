"""Rows that compare with what others wrote for the same work: TorchIO's bias field and blur; MONAI stands in cases.py."""

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.published_augment import bias_field as published_field
from benchmarks.published_augment import gaussian_filter
from benchmarks.speed.inputs import Inputs
from benchmarks.speed.row import Row, timed
from benchmarks.speed.timing import Patience, Work, in_turn
from crkd_cli.augment.intensity import bias_field, blur

SIGMA = 1.0


def augmentation(inputs: Inputs) -> Iterator[Row]:
    """A batch of LA patches: crkd at once, the others sample by sample."""
    size, count = inputs.sizes.patch, 2 * inputs.sizes.patches
    draw = np.random.default_rng(0)
    x = torch.from_numpy(draw.random((count, 1, *size), np.float32))
    volumes = [one[0].numpy() for one in x]
    coefficients = draw.uniform(-0.5, 0.5, (count, 4, 4, 4))
    on_device = torch.from_numpy(coefficients).float()
    sigma = torch.full((count, 3), SIGMA)
    degree = sum(np.indices((4, 4, 4)))
    on_device = on_device * torch.from_numpy(degree <= 3)
    works: dict[str, dict[str, Work]] = {
        "bias field": {
            "published": lambda: [
                v * published_field(v.shape, c) for v, c in zip(volumes, coefficients, strict=True)
            ],
            "crkd": lambda: x * bias_field(x, on_device),
        },
        "Gaussian blur": {
            "published": lambda: [gaussian_filter(v, SIGMA) for v in volumes],
            "crkd": lambda: blur(x, sigma, 8, truncate=4.0, mirror=True),
        },
    }
    peers = torchio_transforms()
    for what, ways in works.items():
        name = "augment-" + what.split()[-1]
        work = f"{what} of {count} LA patches {'×'.join(map(str, size))}"
        if peers:
            ways["torchio"] = lambda transform=peers[what]: [transform(one) for one in x]
        taken = in_turn(ways, Patience(0.0, least=3))
        row = Row(name, "other", work, note="baseline: numpy or scipy, sample by sample")
        yield timed(row, taken["published"], taken["crkd"])
        row = Row(f"peer-{name}", "peer", f"{work}: TorchIO")
        if peers:
            yield timed(row, taken["torchio"], taken["crkd"])
        else:
            row.note = "TorchIO is not installed"
            yield row


def torchio_transforms() -> dict[str, Work] | None:
    """TorchIO's transforms at the same strength; None where it is not installed."""
    try:
        import torchio
    except ImportError:
        return None
    return {
        "bias field": torchio.RandomBiasField(coefficients=0.5, order=3),
        "Gaussian blur": torchio.RandomBlur(std=(SIGMA, SIGMA)),
    }
