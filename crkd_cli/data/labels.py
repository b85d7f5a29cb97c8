"""Turn the values in label files into class numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.store import ClassInfo
from crkd_cli.errors import CrkdError

Counts = Mapping[int, int]  # label value → number of pixels or voxels, values ascending
Numbers = Mapping[int, int]  # label value → class number, values ascending


@dataclass(frozen=True)
class LabelValues:
    """The values in one label file."""

    path: Path
    counts: Counts


@dataclass(frozen=True)
class ClassAssignment:
    """The classes of a dataset, and what the values in its label files mean."""

    classes: tuple[ClassInfo, ...]  # by class number
    numbers: Mapping[Path, Numbers]  # by label file; values that are not a class are missing
    notes: tuple[str, ...] = ()  # what the user should know about it


def count_values(array: NDArray[Any]) -> Counts:
    """Count the pixels or voxels of every value in a label map."""
    values, counts = np.unique(array, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def is_blurred(counts: Counts) -> bool:
    """Tell whether a label map was 0 and 255 before it was compressed or resized.

    This is assumed if 99 % of its pixels are near these two values.
    """
    near = sum(count for value, count in counts.items() if 0 <= value <= 32 or 223 <= value <= 255)
    in_range = min(counts) >= 0 and 223 <= max(counts) <= 255
    return in_range and near >= 0.99 * sum(counts.values())


def threshold(counts: Counts) -> Numbers:
    """Map the values of a blurred label map to background (below 128) and class 1."""
    return {value: int(value >= 128) for value in counts}


def fixed_numbers(counts: Counts, class_count: int) -> Numbers:
    """Map the values of one label file of a dataset whose classes are known.

    Values are class numbers, except in binary masks with 0 and 255.
    """
    if class_count == 2 and is_blurred(counts):
        return threshold(counts)
    return {value: value for value in counts if 0 <= value < class_count}


def foreground(array: NDArray[Any], counts: Counts) -> NDArray[np.bool_]:
    """Return where a binary label map is not background, by the rule of `fixed_numbers`."""
    mask: NDArray[np.bool_] = array >= 128 if is_blurred(counts) else array != 0
    return mask


def check_values(label: LabelValues, assignment: ClassAssignment) -> None:
    """Raise CrkdError if the label file contains values that are not a class."""
    numbers = assignment.numbers[label.path]
    invalid = [value for value in label.counts if value not in numbers]
    if invalid:
        preview = ", ".join(map(str, invalid[:5]))
        if len(invalid) > 5:
            preview += " …"
        last = len(assignment.classes) - 1
        raise CrkdError(
            f"{label.path} has label values that are not a class: {preview}; "
            f"classes are 0 to {last}"
        )


def to_class_numbers(array: NDArray[Any], numbers: Numbers) -> NDArray[np.uint8]:
    """Map every value in a label map to its class number."""
    table = np.zeros(max(numbers) + 1, dtype=np.uint8)
    table[list(numbers)] = list(numbers.values())
    class_numbers: NDArray[np.uint8] = table[array]
    return class_numbers


def compact(array: NDArray[Any]) -> NDArray[Any]:
    """Convert a label map to a small integer type that represents its values."""
    lowest, highest = (np.min_scalar_type(int(value)) for value in (array.min(), array.max()))
    return array.astype(np.promote_types(lowest, highest), copy=False)
