"""Label values and class numbers."""

from pathlib import Path

import numpy as np
import pytest

from crkd_cli.data.labels import (
    ClassAssignment,
    LabelValues,
    check_values,
    compact,
    count_values,
    encode,
    fixed_numbers,
    foreground,
    is_blurred,
)
from crkd_cli.data.store import numbered_classes
from crkd_cli.errors import CrkdError


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({0: 50, 255: 50}, True),
        ({0: 500, 12: 5, 240: 5, 255: 490}, True),
        ({0: 500, 100: 9, 255: 491}, True),  # 0.9 % are in between
        ({0: 500, 100: 20, 255: 480}, False),
        ({0: 50, 1: 50}, False),
        ({0: 50, 255: 49, 256: 1}, False),
        ({-1: 1, 0: 50, 255: 49}, False),
    ],
)
def test_blurred_masks_have_almost_only_values_near_0_and_255(counts, expected):
    assert is_blurred(counts) == expected


def test_values_of_known_classes():
    assert fixed_numbers({0: 5, 3: 5}, class_count=4) == {0: 0, 3: 3}
    assert fixed_numbers({0: 5, 1: 5}, class_count=2) == {0: 0, 1: 1}
    assert fixed_numbers({0: 500, 127: 1, 128: 1, 255: 500}, class_count=2) == {
        0: 0,
        127: 0,
        128: 1,
        255: 1,
    }
    # With more classes, 255 is not the foreground of a mask.
    assert fixed_numbers({0: 5, 255: 5}, class_count=4) == {0: 0}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64])
def test_values_are_counted(rng, dtype):
    array = rng.integers(0, 5, (3, 700, 800)).astype(dtype)[:, ::2].T * 50  # more than one part
    expected = {50 * k: int((array == 50 * k).sum()) for k in range(5)}
    assert list(count_values(array).items()) == list(expected.items())


@pytest.mark.parametrize("values", [[0, 1], [0, 255], [0] * 200 + [3, 250] + [255] * 200])
def test_the_foreground_is_class_1(values):
    array = np.array(values)[:, None]
    counts = count_values(array)
    numbers = fixed_numbers(counts, class_count=2)
    expected = [[numbers[value] == 1] for value in values]
    assert foreground(encode(array, counts), counts).tolist() == expected


def test_values_that_are_not_a_class():
    label = LabelValues(Path("a.png"), {-1: 1, 0: 9, 1: 9, 300: 1})
    assignment = ClassAssignment(
        numbered_classes(("background", "organ")), {label.path: {0: 0, 1: 1}}
    )
    message = r"a\.png has label values that are not a class: -1, 300; classes are 0 to 1"
    with pytest.raises(CrkdError, match=message):
        check_values(label, assignment)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 1, 2], np.uint8),
        ([0, 255], np.uint16),
        ([-7, 0, 3], np.int16),
        ([-(2**63), 0, 2**63 - 1], np.int64),
        ([0, 2**32 + 5, 2**64 - 1], np.uint64),
    ],
)
def test_any_integers_have_small_codes(values, dtype):
    array = np.array([values, values[::-1]], dtype=dtype)
    coded = encode(array, count_values(array))
    assert coded.codes.dtype == np.uint8
    decoded = [[coded.combinations[code][0] for code in row] for row in coded.codes.tolist()]
    assert decoded == array.tolist()
    assert coded.sizes == (2,) * len(values)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 255], np.uint8),
        ([0, 256], np.uint16),
        ([-1, 255], np.int16),
        ([0, 70_000], np.uint32),
    ],
)
def test_values_have_a_small_type(values, dtype):
    compacted = compact(np.array(values, np.int64))
    assert compacted.dtype == dtype
    assert compacted.tolist() == values
