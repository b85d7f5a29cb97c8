"""Fast operations on bytes return what NumPy returns."""

import numpy as np
import pytest

from crkd_cli.data.raw import byte_arrays
from crkd_cli.data.raw.byte_arrays import count_bytes, look_up


def test_bytes_are_counted_in_any_order_in_memory(rng, monkeypatch):
    monkeypatch.setattr(byte_arrays, "COUNTED_AT_ONCE", 1000)
    array = rng.integers(0, 256, (7, 50, 3), dtype=np.uint8)
    expected = np.bincount(array.ravel(), minlength=256)
    np.testing.assert_array_equal(count_bytes(array), expected)
    np.testing.assert_array_equal(count_bytes(np.moveaxis(array, -1, 0)), expected)


@pytest.mark.parametrize("codes", [np.uint8, np.uint16])
@pytest.mark.parametrize("numbers", [np.uint8, np.int16])
def test_numbers_are_looked_up(rng, codes, numbers):
    array = rng.integers(0, 5, (6, 7)).astype(codes)
    for table in ([0, 3, 3, 1, 2], [0, 1, 2, 3, 4]):
        result = look_up(np.array(table, numbers), array)
        assert result.dtype == numbers
        np.testing.assert_array_equal(result, np.array(table)[array])
