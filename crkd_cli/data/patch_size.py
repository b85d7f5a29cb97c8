"""The sizes of patches and batches: as large as memory allows, and mostly image."""

import re
import subprocess
from collections.abc import Sequence
from functools import cache
from math import prod
from statistics import fmean, median

from crkd_cli.errors import UsageError
from crkd_cli.text import format_size, shorten

Size = tuple[int, ...]

MIN_IMAGE_SHARE = 0.9  # of an average patch; the rest is padding
# Sides of patches. Networks halve multiples of 16 four times; short sides are closer to the image
# and halved less often.
SIDES: Size = (*range(4, 32, 4), *range(32, 64, 8), *range(64, 1025, 16))
MIN_SIDE = 16  # to which a lack of memory may shrink a side
# Labeled images, patches or slices per step, by the number of axes: as published, fewer if memory
# is short, and more of small 3D patches.
MIN_BATCH: dict[int, int] = {2: 4, 3: 2}
MAX_BATCH: dict[int, int] = {2: 12, 3: 4}

DEFAULT_MEMORY = 8e9  # without a GPU
# The peak memory of `crkd train` with CRKD on a CPU in fp32: 0.90 and 3.69 GB for patches of
# 32×48×32 and 64×80×80, batch 2 + 2, with custom3d.yaml, and 0.91 and 2.45 GB for 128×128 and
# 256×256, batch 4 + 4, with custom2d.yaml: 1,940 bytes per voxel and 3,920 per pixel. With 26
# classes instead of 2, 890 and 920 more. In bf16, a voxel needs about half of it. Images in color
# may be trained with efficientnet_lite0, which takes 1.35 and 3.49 GB for 128×128 and 256×256.
BASE_BYTES = 0.5e9
BYTES_PER_VOXEL = {2: 3850, 3: 1870}
BYTES_PER_COLOR_PIXEL = 5630
BYTES_PER_CLASS = 37
MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?([GM])B", re.IGNORECASE)


class Budget:
    """The memory for training, and what a step takes of it.

    Args:
        classes: K.
        memory: In bytes; None for that of the GPU.
        color: Whether the images are RGB.
    """

    def __init__(self, classes: int, memory: float | None, *, color: bool = False) -> None:
        self._source = "of --memory"
        if memory is None:
            memory = gpu_memory()
            self._source = "of the GPU; see --memory"
        if memory is None:
            memory = DEFAULT_MEMORY
            self._source = "assumed; see --memory"
        self.memory = memory
        self._classes = classes
        self._bytes = BYTES_PER_VOXEL | ({2: BYTES_PER_COLOR_PIXEL} if color else {})

    def __str__(self) -> str:
        return f"{self.memory / 1e9:.3g} GB {self._source}"

    def needed(self, size: Size, batch: int) -> float:
        """Return the memory of a step of CRKD with this size of patches and batches."""
        per_voxel = self._bytes[len(size)] + BYTES_PER_CLASS * self._classes
        return BASE_BYTES + per_voxel * prod(size) * 2 * batch

    def fits(self, size: Size, batch: int) -> bool:
        """Whether a step fits in the memory."""
        return self.needed(size, batch) <= self.memory

    def require(self, size: Size, batch: int) -> None:
        """Raise UsageError unless a step fits in the memory."""
        if not self.fits(size, batch):
            least = -(-self.needed(size, batch) // 1e8) / 10
            raise UsageError(
                f"a step with {format_size(size)} and batch {batch} needs about {least:.3g} GB, "
                f"but training may use {self.memory / 1e9:.3g} GB; give a larger --memory, or a "
                "smaller size or batch in plan"
            )


def parse_memory(text: str) -> float:
    """Return the bytes of --memory, such as 8GB or 500MB. Raises UsageError."""
    match = MEMORY.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--memory {shorten(text)!r}: expected a size such as 8GB or 500MB")
    return float(match[1]) * (1e9 if match[2].upper() == "G" else 1e6)


@cache  # a plan is made twice, before and after the classes are known
def gpu_memory() -> float | None:
    """Return the bytes of the smallest NVIDIA GPU; None without one.

    Asks the driver's program, because loading PyTorch takes seconds.
    """
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return min(float(line) for line in output.stdout.splitlines()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def fit_patch(
    sizes: Sequence[Size], spacing: Sequence[float], batch: int | None, budget: Budget
) -> Size:
    """Return the patch for images of `sizes`: about the median image, or less.

    It shrinks along the axis with most padding until at most a tenth of an average patch is
    padding, then along the axis that is longest in mm until a batch fits in the memory. Raises
    UsageError if it never does.
    """
    patch = tuple(_side_up_to(median(axis)) for axis in zip(*sizes, strict=True))
    while image_share(sizes, patch) < MIN_IMAGE_SHARE:
        shares = [_share_along(axis, sizes, patch) for axis in range(len(patch))]
        if min(shares) == 1:
            break  # images are thinner than the smallest side
        patch = _shrink(patch, shares.index(min(shares)))
    batch = batch or MIN_BATCH[len(patch)]
    while not budget.fits(patch, batch):
        lengths = [
            side * step if side > MIN_SIDE else 0.0
            for side, step in zip(patch, spacing, strict=True)
        ]
        if max(lengths) == 0:
            break
        patch = _shrink(patch, lengths.index(max(lengths)))
    budget.require(patch, batch)
    return patch


def fit_batch(size: Size, given: int | None, budget: Budget) -> tuple[int, str]:
    """Return the batch for patches or images of `size`, and the reason for it.

    Raises UsageError if not even a batch of 1 fits in the memory.
    """
    batch = given or MAX_BATCH[len(size)]
    while not given and batch > 1 and not budget.fits(size, batch):
        batch -= 1
    if not given:
        budget.require(size, batch)
    needed = f"{budget.needed(size, batch) / 1e9:.2g} GB"
    return batch, f"labeled and as many unlabeled; a step needs about {needed}, {budget}"


def image_share(sizes: Sequence[Size], patch: Size) -> float:
    """Return which share of a patch is image and not padding, on average over the images."""
    shares = []
    for size in sizes:
        sides = zip(size, patch, strict=True)
        shares.append(prod(min(length, side) / side for length, side in sides))
    return fmean(shares)


def _share_along(axis: int, sizes: Sequence[Size], patch: Size) -> float:
    """Return the share of image along an axis; 1 if the patch cannot shrink along it."""
    if patch[axis] == SIDES[0]:
        return 1.0
    return image_share([(size[axis],) for size in sizes], (patch[axis],))


def _side_up_to(length: float) -> int:
    return max((side for side in SIDES if side <= length), default=SIDES[0])


def _shrink(patch: Size, axis: int) -> Size:
    """Return the patch with the next smaller side along an axis."""
    smaller = SIDES[SIDES.index(patch[axis]) - 1]
    return (*patch[:axis], smaller, *patch[axis + 1 :])
