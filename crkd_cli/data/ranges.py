"""What the training cases have in common: spacing, size and intensities of their files.

Checkpoints contain these ranges, so that `predict` can name the cases that are unlike them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from crkd_cli.config import Strict
from crkd_cli.data.splits import Split
from crkd_cli.data.store import CaseInfo, ChannelInfo, DatasetSpec, Store, ValueStatistics

# By how much a case may be outside the range of the training cases.
SPACING_FACTOR = 1.1  # spacings that differ by more are resampled
SIZE_FACTOR = 1.25
INTENSITY_WIDTHS, INTENSITY_SHARE = 0.5, 0.1  # of the width of the range, and of its larger end


class Range(Strict, frozen=True):
    """The smallest and the largest value."""

    low: float
    high: float

    def contains(self, value: float, factor: float) -> bool:
        """Return whether `value` is in the range, widened at both ends by `factor`."""
        return self.low / factor <= value <= self.high * factor


class DataRanges(Strict, frozen=True):
    """The ranges of the training cases."""

    spacing_mm: tuple[Range, ...] | None  # per stored axis; None: some files do not state it
    sides: tuple[Range, ...]  # of the whole image, in mm if the spacing is known, else in pixels
    intensity: tuple[tuple[Range, Range], ...]  # per channel, see `intensity_features`

    def fit(self, spec: DatasetSpec) -> bool:
        """Return whether they have the axes and channels of a dataset."""
        axes = {len(self.sides), spec.dims if self.spacing_mm is None else len(self.spacing_mm)}
        return axes == {spec.dims} and len(self.intensity) == len(spec.channels)


class Unlike(NamedTuple):
    """In what a case is unlike the training cases; None: not known."""

    spacing: bool | None
    size: bool | None
    intensity: bool | None


def measure_ranges(store: Store, split: Split) -> DataRanges:
    """Return the ranges of the cases that `split` trains on, labeled or not."""
    groups = [store.groups[group] for group in split.train if group in store.groups]
    cases = [case for group in groups for case in group]
    spacings = [case.label_spacing_mm for case in cases]
    known = [spacing for spacing in spacings if spacing is not None]
    is_known = len(known) == len(cases)
    sides = [_sides(_size(case), case.label_spacing_mm if is_known else None) for case in cases]
    features = [intensity_features(case.intensity, store.spec) for case in cases]
    intensity = []
    for of_channel in zip(*features, strict=True):
        first, second = _ranges(of_channel)
        intensity.append((first, second))
    return DataRanges(
        spacing_mm=_ranges(known) if is_known else None,
        sides=_ranges(sides),
        intensity=tuple(intensity),
    )


def compare_with_ranges(
    ranges: DataRanges,
    size: Sequence[int],
    spacing: Sequence[float] | None,
    statistics: Sequence[ValueStatistics],
    spec: DatasetSpec,
) -> Unlike:
    """Say in what an image is unlike the training cases.

    Args:
        ranges: Those of the training cases.
        size: *S of the file, in the order of the stored axes.
        spacing: In mm, or None if it is not known.
        statistics: The values of every channel of the file.
        spec: The dataset.
    """
    unlike_spacing: bool | None = None
    if ranges.spacing_mm is not None and spacing is not None:
        unlike_spacing = not _all_within(ranges.spacing_mm, spacing, SPACING_FACTOR)
    unlike_size: bool | None = None
    if ranges.spacing_mm is None or spacing is not None:  # else pixels are compared with mm
        sides = _sides(size, spacing if ranges.spacing_mm is not None else None)
        unlike_size = not _all_within(ranges.sides, sides, SIZE_FACTOR)
    return Unlike(
        unlike_spacing, unlike_size, _is_unlike(ranges, intensity_features(statistics, spec))
    )


def intensity_features(
    statistics: Sequence[ValueStatistics], spec: DatasetSpec
) -> list[tuple[float, float]]:
    """Return two numbers per channel that remain different after it is normalized.

    They are mean and standard deviation, for `minmax` relative to the range of the values, and for
    `zscore` smallest and largest value in standard deviations from the mean.
    """
    return list(map(_features, spec.channels, statistics))


def _features(channel: ChannelInfo, values: ValueStatistics) -> tuple[float, float]:
    if channel.intensity == "zscore":
        std = values.std or 1.0
        return (values.min - values.mean) / std, (values.max - values.mean) / std
    if channel.intensity == "minmax":
        width = values.max - values.min or 1.0
        return (values.mean - values.min) / width, values.std / width
    return values.mean, values.std


def _is_unlike(ranges: DataRanges, features: Sequence[tuple[float, float]]) -> bool:
    """Return whether a number is far outside its range."""
    for of_channel, values in zip(ranges.intensity, features, strict=True):
        for allowed, value in zip(of_channel, values, strict=True):
            slack = INTENSITY_WIDTHS * (allowed.high - allowed.low)
            slack += INTENSITY_SHARE * max(abs(allowed.low), abs(allowed.high))
            if not allowed.low - slack <= value <= allowed.high + slack:
                return True
    return False


def _all_within(ranges: Sequence[Range], values: Sequence[float], factor: float) -> bool:
    pairs = zip(ranges, values, strict=True)
    return all(allowed.contains(value, factor) for allowed, value in pairs)


def _size(case: CaseInfo) -> tuple[int, ...]:
    return case.shape if case.native_shape is None else case.native_shape


def _sides(size: Sequence[int], spacing: Sequence[float] | None) -> tuple[float, ...]:
    steps = (1.0,) * len(size) if spacing is None else spacing
    return tuple(count * step for count, step in zip(size, steps, strict=True))


def _ranges(rows: Sequence[Sequence[float]]) -> tuple[Range, ...]:
    """Return the range of every column."""
    return tuple(Range(low=min(column), high=max(column)) for column in zip(*rows, strict=True))
