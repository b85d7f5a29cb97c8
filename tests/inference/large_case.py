"""Measure the memory and the time that a large volume with 25 classes takes.

    python -m tests.inference.large_case 600 512 512 --resampled 1.5

The network is a single convolution, so all else counts. In a process of its own, because memory
that was used before would count.
"""

import argparse
import resource
import time
from dataclasses import dataclass

import numpy as np
import torch

from crkd_cli.config import Frame
from crkd_cli.data.store import ChannelInfo, DatasetSpec
from crkd_cli.inference.inferer import Inferer

CLASSES = 25


@dataclass(frozen=True)
class Measurement:
    """What it took to predict a volume."""

    growth_mib: float  # of the peak memory of the process
    peak_mib: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", nargs=3, type=int, help="of the labels")
    parser.add_argument("--resampled", type=float, default=1.0, help="voxel of the image in theirs")
    parser.add_argument("--patch", nargs=3, type=int, default=(96, 160, 160))
    options = parser.parse_args()
    print(measure(tuple(options.size), options.resampled, tuple(options.patch)))


def measure(size: tuple[int, ...], resampled: float, patch: tuple[int, ...]) -> Measurement:
    """Predict labels of `size` for an image whose voxels are larger, by `resampled`."""
    names = tuple(f"class {k}" for k in range(CLASSES))
    spec = DatasetSpec("large", "folder", names, (ChannelInfo("CT", "zscore"),), 3)
    network = torch.nn.Conv3d(1, CLASSES, 1)
    inferer = Inferer([network], Frame(patch=patch), spec, torch.device("cpu"), window_batch=1)
    shape = [round(side / resampled) for side in size]
    image = np.random.default_rng(0).standard_normal((1, *shape), dtype=np.float32)
    inferer(image[(slice(None), *(slice(side) for side in patch))])  # loads libraries
    before, begin = peak_mib(), time.perf_counter()
    labels = inferer(image, size)
    seconds = time.perf_counter() - begin
    assert labels.shape == size
    return Measurement(peak_mib() - before, peak_mib(), seconds)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # from KiB, on Linux


if __name__ == "__main__":
    main()
