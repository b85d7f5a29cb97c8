"""What predicted masks contain: the values of the label files, or class numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw import formats
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import UsageError

_TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")  # the smallest first
# What pictures can hold. The other formats can hold all of _TYPES.
_PICTURE_TYPES = {
    ".png": ("u1", "u2"),
    ".tif": ("u1", "u2", "i4"),
    ".tiff": ("u1", "u2", "i4"),
}


class MaskValues:
    """The value that stands for each class in masks, in the smallest type that holds all values.

    With `class_numbers` the values are 0 to K − 1, whatever the label files contained.
    """

    def __init__(self, spec: DatasetSpec, *, class_numbers: bool = False) -> None:
        values = [info.value for info in spec.classes]
        if class_numbers:
            values = list(range(len(values)))
        self._values = values
        self.classes = tuple(zip(values, spec.class_names, strict=True))  # (value, name)

    def check(self, mask: Path) -> None:
        """Raise UsageError if the format of the file `mask` cannot hold all values."""
        types = _types(mask)
        if _smallest_type(types, self._values) is not None:
            return
        limits = [np.iinfo(name) for name in types]
        low, high = min(limit.min for limit in limits), max(limit.max for limit in limits)
        value, name = next(item for item in self.classes if not low <= item[0] <= high)
        raise UsageError(
            f"{mask} can contain values from {low} to {high}, but {name} is {value}; give "
            "--class-numbers, or images in another format"
        )

    def encode(self, labels: NDArray[Any], mask: Path) -> NDArray[Any]:
        """Replace the class numbers `labels` [*S] by values, as the file `mask` will hold them."""
        table = np.array(self._values, dtype=_smallest_type(_types(mask), self._values))
        encoded: NDArray[Any] = table[labels]
        return encoded


def _types(mask: Path) -> Sequence[str]:
    return _PICTURE_TYPES.get(formats.suffix(mask), _TYPES)


def _smallest_type(types: Sequence[str], values: Sequence[int]) -> str | None:
    """Return the first of `types` that holds all `values`; None if none does."""
    for name in types:
        limit = np.iinfo(name)
        if limit.min <= min(values) and max(values) <= limit.max:
            return name
    return None
