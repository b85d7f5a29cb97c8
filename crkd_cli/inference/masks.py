"""The values in predicted masks: those of the label files, or class numbers."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.labels import compact
from crkd_cli.data.raw import formats
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import UsageError

# The values that files can contain, by suffix.
_LIMITS = {
    ".png": (0, 2**16 - 1),
    ".tif": (-(2**31), 2**31 - 1),
    ".tiff": (-(2**31), 2**31 - 1),
}
_OTHER_LIMITS = (-(2**63), 2**63 - 1)


class MaskValues:
    """The value that stands for each class in masks.

    With `class_numbers` the values are 0 to K − 1, whatever the label files contained.
    """

    def __init__(self, spec: DatasetSpec, *, class_numbers: bool = False) -> None:
        values = [info.value for info in spec.classes]
        if class_numbers:
            values = list(range(len(values)))
        self.classes = tuple(zip(values, spec.class_names, strict=True))  # (value, name)

    def check(self, mask: Path) -> None:
        """Raise UsageError if the format of the file `mask` cannot hold all values."""
        low, high = _LIMITS.get(formats.suffix(mask), _OTHER_LIMITS)
        for value, name in self.classes:
            if not low <= value <= high:
                raise UsageError(
                    f"{mask} can contain values from {low} to {high}, but {name} is {value}; give "
                    "--class-numbers, or images in another format"
                )

    def encode(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Replace the class numbers `labels` [*S] by values. `check` must have passed."""
        table = compact(np.array([value for value, _ in self.classes], dtype=np.int64))
        encoded = np.empty(labels.shape, table.dtype)
        # Row by row or plane by plane, because indices take 8 bytes a voxel.
        for values, numbers in zip(encoded, labels, strict=True):
            values[...] = table[numbers]
        return encoded
