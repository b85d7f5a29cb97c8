"""The ranges of training cases, and the cases that are outside them."""

import msgspec
import pytest

from crkd_cli.data.ranges import (
    DataRanges,
    Range,
    Unlike,
    compare_with_ranges,
    intensity_features,
    measure_ranges,
)
from crkd_cli.data.splits import Split
from crkd_cli.data.store import ChannelInfo, Store, ValueStatistics, write_index

SPLIT = Split(dataset="toy", name="x", train=("p00", "p01", "gone"), labeled=("p00",), val=("p02",))


@pytest.fixture
def store(make_store) -> Store:
    """Three cases; the third is of the validation part."""
    store = make_store(dims=3, groups=3, shape=(8, 8, 8))
    changes = [
        {
            "spacing_mm": (2.0, 1.0, 1.0),
            "intensity": (ValueStatistics(min=0, max=100, mean=20, std=10),),
        },
        {  # resampled from a file of 4 × 10 × 12 voxels
            "native_shape": (4, 10, 12),
            "native_spacing_mm": (5.0, 0.8, 0.5),
            "intensity": (ValueStatistics(min=-50, max=150, mean=30, std=20),),
        },
        {"spacing_mm": (9.0, 9.0, 9.0)},
    ]
    cases = []
    for case, change in zip(store.index.cases, changes, strict=True):
        cases.append(msgspec.structs.replace(case, **change))
    write_index(store.root, msgspec.structs.replace(store.index, cases=tuple(cases)))
    return Store(store.root)


def test_ranges_are_those_of_the_files_of_the_training_part(store):
    """minmax: mean 20 of 0 to 100 is 0.2, deviation 10 is 0.1; 30 of -50 to 150 is 0.4, and 0.1."""
    assert measure_ranges(store, SPLIT) == DataRanges(
        spacing_mm=(Range(2.0, 5.0), Range(0.8, 1.0), Range(0.5, 1.0)),
        sides=(Range(16.0, 20.0), Range(8.0, 8.0), Range(6.0, 8.0)),
        intensity=((Range(0.2, 0.4), Range(0.1, 0.1)),),
    )


def test_without_a_spacing_sides_are_in_pixels(store):
    cases = [msgspec.structs.replace(store.index.cases[0], spacing_mm=None)]
    cases += store.index.cases[1:]
    write_index(store.root, msgspec.structs.replace(store.index, cases=tuple(cases)))
    ranges = measure_ranges(Store(store.root), SPLIT)
    assert ranges.spacing_mm is None
    assert ranges.sides == (Range(4.0, 8.0), Range(8.0, 10.0), Range(8.0, 12.0))
    values = store.index.cases[0].intensity
    unlike = compare_with_ranges(ranges, (8, 8, 9), (1.0, 1.0, 1.0), values, store.spec)
    assert unlike == Unlike(spacing=None, size=False, intensity=False)


@pytest.mark.parametrize(
    ("size", "spacing", "mean", "expected"),
    [
        ((8, 8, 8), (2.0, 1.0, 1.0), 20, (False, False, False)),
        # 10 % and 25 % beyond the range are allowed, for mean 0.2 to 0.4 half of it and 0.04 more
        ((4, 9, 14), (5.4, 1.09, 0.46), 53, (False, False, False)),
        ((4, 8, 8), (5.6, 1.0, 1.0), 20, (True, False, False)),
        ((8, 8, 4), (2.0, 1.0, 1.0), 20, (False, True, False)),
        ((8, 8, 8), (2.0, 1.0, 1.0), 55, (False, False, True)),
        ((8, 8, 8), None, 20, (None, None, False)),
    ],
    ids=str,
)
def test_cases_are_compared_with_the_ranges(store, size, spacing, mean, expected):
    values = [ValueStatistics(min=0, max=100, mean=mean, std=10)]
    unlike = compare_with_ranges(measure_ranges(store, SPLIT), size, spacing, values, store.spec)
    assert unlike == Unlike(*expected)


@pytest.mark.parametrize(
    ("intensity", "features"),
    [("uint8", (20, 10)), ("window", (20, 10)), ("minmax", (0.2, 0.1)), ("zscore", (-2, 8))],
)
def test_intensities_are_compared_after_normalization(store, intensity, features):
    channels = (ChannelInfo(modality="MR", intensity=intensity),)
    spec = msgspec.structs.replace(store.spec, channels=channels)
    values = [ValueStatistics(min=0, max=100, mean=20, std=10)]
    assert intensity_features(values, spec) == [pytest.approx(features)]
