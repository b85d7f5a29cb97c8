"""Turn the values in label files into class numbers, and merge the label files of a case."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw.byte_arrays import count_bytes
from crkd_cli.data.splits import preview
from crkd_cli.data.store import ClassInfo, label_dtype
from crkd_cli.errors import CrkdError, pluralize

Counts = Mapping[int, int]  # label value → number of pixels or voxels, values ascending
# Label value → class number, or the number of classes where the pixels are ignored.
Numbers = Mapping[int, int]
# Of the values in the label files of one case; masks have a few.
MAX_COMBINATIONS = 2**24
MAX_LINES = 20  # classes shown


@dataclass(frozen=True)
class LabelValues:
    """The values in one label file."""

    path: Path
    counts: Counts
    class_name: str | None = None  # the file is a mask of this class


@dataclass(frozen=True)
class ClassAssignment:
    """The classes of a dataset, and what the values in its label files mean."""

    classes: tuple[ClassInfo, ...]  # by class number
    numbers: Mapping[Path, Numbers]  # by label file; values that are not a class are missing
    notes: tuple[str, ...] = ()  # for the user


@dataclass(frozen=True)
class CodedLabel:
    """The label files of one case in a single array.

    The code of a pixel is the index of the combination of values that the files have there.
    """

    codes: NDArray[Any]  # [*S] unsigned
    combinations: tuple[tuple[int, ...], ...]  # by code: one value per file
    sizes: tuple[int, ...]  # by code: pixels or voxels

    def crop(self, box: tuple[slice, ...]) -> "CodedLabel":
        """Return a part of the label."""
        codes = self.codes[box]
        return replace(self, codes=codes, sizes=_count_codes(codes, len(self.combinations)))


def count_values(array: NDArray[Any]) -> Counts:
    """Count the pixels or voxels of every value in a label map."""
    if array.dtype == np.uint8:
        totals = count_bytes(array).tolist()
        return {value: count for value, count in enumerate(totals) if count}
    values, counts = np.unique(array, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def encode(array: NDArray[Any], counts: Counts) -> CodedLabel:
    """Return the label map of one file as codes; `counts` are its values.

    The values may be any integers, so no lookup table covers their range.
    """
    values = np.array(list(counts), dtype=array.dtype)
    codes = np.empty(array.shape, dtype=np.min_scalar_type(len(values) - 1))
    if values[0] == 0 and values[-1] == len(values) - 1:
        codes[...] = array
    elif len(values) == 2:  # a mask
        codes[...] = array == values[1]
    else:
        for plane, plane_codes in zip(array, codes, strict=True):
            plane_codes[...] = np.searchsorted(values, plane)
    return CodedLabel(codes, tuple((value,) for value in counts), tuple(counts.values()))


def merge(first: CodedLabel, second: CodedLabel) -> CodedLabel:
    """Merge the label files of a case, which have the same shape."""
    count = len(second.combinations)
    size = len(first.combinations) * count
    if size > MAX_COMBINATIONS:
        raise CrkdError(
            "several label files of one image must be masks with a few values each; "
            f"together, they have {size} combinations of values"
        )
    joint = first.codes.astype(np.min_scalar_type(size)) * np.min_scalar_type(size).type(count)
    joint += second.codes.astype(joint.dtype)
    present = np.zeros(size, dtype=bool)
    present[joint] = True
    kept = np.flatnonzero(present)
    table = np.zeros(size, dtype=np.min_scalar_type(len(kept) - 1))
    table[kept] = np.arange(len(kept))
    combinations = [
        first.combinations[code // count] + second.combinations[code % count]
        for code in kept.tolist()
    ]
    codes = table[joint]
    return CodedLabel(codes, tuple(combinations), _count_codes(codes, len(combinations)))


def compact(array: NDArray[Any]) -> NDArray[Any]:
    """Convert a label map to a small integer type that represents its values."""
    lowest, highest = (np.min_scalar_type(int(value)) for value in (array.min(), array.max()))
    return array.astype(np.promote_types(lowest, highest), copy=False)


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


def foreground(label: CodedLabel, counts: Counts) -> NDArray[np.bool_]:
    """Return where a binary label file is not background, by the rule of `fixed_numbers`."""
    values = np.array([value for (value,) in label.combinations])
    mask: NDArray[np.bool_] = (values >= 128 if is_blurred(counts) else values != 0)[label.codes]
    return mask


def check_values(label: LabelValues, assignment: ClassAssignment) -> None:
    """Raise CrkdError if the label file contains values that are not a class."""
    numbers = assignment.numbers[label.path]
    invalid = [value for value in label.counts if value not in numbers]
    if invalid:
        last = len(assignment.classes) - 1
        raise CrkdError(
            f"{label.path} has label values that are not a class: "
            f"{preview(list(map(str, invalid)))}; classes are 0 to {last}"
        )


def number_combinations(
    files: Sequence[LabelValues],
    combinations: Sequence[tuple[int, ...]],
    sizes: Sequence[int],
    assignment: ClassAssignment,
) -> NDArray[Any]:
    """Return the class number of every combination of values in the label files of a case.

    A pixel has the class that one of the files assigns to it. Otherwise it is ignored if one of
    them ignores it, else background. Raises CrkdError if two files assign different classes to it.
    """
    ignored = len(assignment.classes)
    numbers = [assignment.numbers[file.path] for file in files]
    table = np.zeros(len(combinations), dtype=label_dtype(ignored))
    conflicts: dict[tuple[int, int], int] = {}  # two files → number of pixels
    for code, values in enumerate(combinations):
        claims = [of_file[value] for of_file, value in zip(numbers, values, strict=True)]
        claimed = {number for number in claims if 0 < number < ignored}
        if len(claimed) > 1:
            pair = _two_claims(claims, ignored)
            conflicts[pair] = conflicts.get(pair, 0) + sizes[code]
        elif claimed:
            table[code] = claimed.pop()
        elif ignored in claims:
            table[code] = ignored
    if conflicts:
        raise CrkdError(_describe_conflict(files, conflicts))
    return table


def class_sizes(table: NDArray[Any], sizes: Sequence[int], class_count: int) -> tuple[int, ...]:
    """Return the number of pixels of every class, where `table` numbers combinations of `sizes`."""
    totals = np.zeros(class_count + 1, dtype=np.int64)
    np.add.at(totals, table, np.array(sizes, dtype=np.int64))
    return tuple(totals[:class_count].tolist())


def describe_classes(classes: Sequence[ClassInfo]) -> str:
    """Return the names of classes with their values: background (0), tumor (2, 3)."""
    return preview([_describe(info) for info in classes], MAX_LINES)


def describe_difference(before: Sequence[ClassInfo], now: Sequence[ClassInfo]) -> str:
    """Describe the first difference between the classes of two datasets."""
    for number, (old, new) in enumerate(zip(before, now, strict=False)):
        if old != new:
            return f"class number {number} was {_describe(old)}, now {_describe(new)}"
    if len(before) > len(now):
        return f"{describe_classes(before[len(now) :])} is no longer a class"
    return f"{describe_classes(now[len(before) :])} is a new class"


def class_lines(
    classes: Sequence[ClassInfo],
    sizes: Sequence[Sequence[int]],
    spacings: Sequence[Sequence[float] | None],
    dims: int,
) -> list[str]:
    """Return a line per class: name, values, number of labels with it, share of pixels, and size.

    Only the first MAX_LINES classes have a line.

    Args:
        classes: K classes, the background first.
        sizes: The pixels or voxels of every class in each label.
        spacings: Of each label, in mm per axis; None if unknown.
        dims: Axes of a label.
    """
    unit = "pixels" if dims == 2 else "voxels"
    totals = [sum(column) for column in zip(*sizes, strict=True)]
    total = max(sum(totals), 1)
    lines = []
    for number, info in enumerate(classes[:MAX_LINES]):
        counts = [of_label[number] for of_label in sizes]
        holders = sum(count > 0 for count in counts)
        share = 100 * totals[number] / total if totals else 0.0
        line = f"{_describe(info)}: in {holders} of {pluralize(len(sizes), 'label')}"
        line += f", {share:.3g} % of the {unit}"
        if number and holders:
            line += f"; {_size_range(counts, spacings, dims)}"
        lines.append(line)
    others = len(classes) - MAX_LINES
    if others > 0:
        lines.append(f"… and {others} more")
    return lines


def _size_range(
    counts: Sequence[int], spacings: Sequence[Sequence[float] | None], dims: int
) -> str:
    """Return the range and the median of an object's size in the labels that contain it.

    In ml, or mm² in 2D; in voxels or pixels unless all spacings are known.
    """
    pairs = [pair for pair in zip(counts, spacings, strict=True) if pair[0]]
    unit = "pixels" if dims == 2 else "voxels"
    values: list[float] = [count for count, _ in pairs]
    known = [prod(spacing) for _, spacing in pairs if spacing is not None]
    if len(known) == len(pairs):
        unit, divisor = ("mm²", 1) if dims == 2 else ("ml", 1000)
        values = [count * size / divisor for count, size in zip(values, known, strict=True)]
    lowest, highest = _rounded(min(values)), _rounded(max(values))
    if lowest == highest:
        return f"{lowest} {unit}"
    return f"{lowest} to {highest} {unit}, median {_rounded(median(values))} {unit}"


def _rounded(value: float) -> str:
    """Return a size with three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _count_codes(codes: NDArray[Any], count: int) -> tuple[int, ...]:
    """Return the pixels or voxels of the codes from 0 to `count` − 1."""
    sizes = np.zeros(count, dtype=np.int64)
    for plane in codes:  # bincount converts to int64
        sizes += np.bincount(plane.ravel(), minlength=count)
    return tuple(sizes.tolist())


def _describe(info: ClassInfo) -> str:
    return f"{info.name} ({preview(list(map(str, info.values)), 4)})"


def _two_claims(claims: Sequence[int], ignored: int) -> tuple[int, int]:
    """Return the first two files that claim a pixel for different classes."""
    claiming = [file for file, number in enumerate(claims) if 0 < number < ignored]
    first = claiming[0]
    second = next(file for file in claiming if claims[file] != claims[first])
    return first, second


def _describe_conflict(
    files: Sequence[LabelValues], conflicts: Mapping[tuple[int, int], int]
) -> str:
    (first, second), count = max(conflicts.items(), key=lambda conflict: conflict[1])
    masks = f"{files[first].path} and {files[second].path}"
    overlap = f"{masks} assign different classes to {count} pixels or voxels"
    others = len(conflicts) - 1
    if others:
        overlap += f", and so do {pluralize(others, 'other pair')} of masks"
    return f"{overlap}; correct the masks, so that every pixel has one class"
