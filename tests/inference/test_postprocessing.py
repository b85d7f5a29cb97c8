"""Post-processing of label maps, by hand and against SciPy."""

import numpy as np
import pytest
from scipy import ndimage

from crkd_cli.inference import postprocessing
from crkd_cli.inference.postprocessing import postprocess
from crkd_cli.runtime.class_rule import ClassRule

LARGEST = ClassRule(smallest_component=1.0)
FILLED = ClassRule(fill_holes=True)


@pytest.mark.parametrize("counted_at_once", [2**24, 3])
def test_largest_component_by_hand(monkeypatch, counted_at_once):
    monkeypatch.setattr(postprocessing, "COUNTED_AT_ONCE", counted_at_once)
    labels = np.array([[1, 1, 0, 2], [1, 0, 2, 0], [0, 0, 2, 1]], np.uint8)
    kept = np.array([[1, 1, 0, 0], [1, 0, 2, 0], [0, 0, 2, 0]], np.uint8)
    rules = [LARGEST, LARGEST]
    assert np.array_equal(postprocess(labels, rules), kept)
    assert np.array_equal(postprocess(np.stack([labels, labels]), rules), np.stack([kept, kept]))
    assert not postprocess(np.zeros((4, 4), np.uint8), rules).any()
    many = labels.astype(np.int16) * 150
    rules = [LARGEST] * 300
    assert np.array_equal(postprocess(many, rules), kept.astype(np.int16) * 150)


def test_small_components_by_hand():
    """Of 4, 2 and 1 pixels: a share of 0.5 keeps the first two, one of 0.51 the first alone."""
    labels = np.array([[1, 1, 0, 1, 0, 1], [1, 1, 0, 1, 0, 0]], np.uint8)
    by_share = {0.25: [4, 2, 1], 0.26: [4, 2], 0.5: [4, 2], 0.51: [4], 1.0: [4]}
    for share, sizes in by_share.items():
        result = postprocess(labels, [ClassRule(smallest_component=share)])
        components, _ = ndimage.label(result)
        assert np.bincount(components.ravel())[1:].tolist() == sizes
    assert np.array_equal(postprocess(labels, [ClassRule()]), labels)
    # One of two equal components is kept.
    assert postprocess(np.array([[1, 0, 1]], np.uint8), [LARGEST]).sum() == 1


def test_holes_are_those_of_scipy(dims, rng):
    smooth = ndimage.gaussian_filter(rng.standard_normal((40,) * dims), 1.0)
    labels = (smooth > -0.1).astype(np.uint8)
    expected = ndimage.binary_fill_holes(labels)
    assert expected.sum() > labels.sum()
    assert np.array_equal(postprocess(labels, [FILLED]), expected)


def test_only_background_is_filled():
    """The ring of class 1 encloses class 2 and a hole; that of class 2 is not closed."""
    labels = np.array(
        [
            [1, 1, 1, 1, 0],
            [1, 2, 0, 1, 0],
            [1, 1, 1, 1, 2],
            [2, 2, 2, 2, 2],
            [2, 0, 0, 0, 0],
        ],
        np.uint8,
    )
    filled = labels.copy()
    filled[1, 2] = 1
    assert np.array_equal(postprocess(labels, [FILLED, FILLED]), filled)
    # A removed component leaves background, which is not filled in the same pass.
    alone = np.array([[1, 1, 1, 1], [1, 2, 0, 1], [1, 1, 1, 1], [0, 2, 2, 0]], np.uint8)
    result = postprocess(alone, [FILLED, LARGEST])
    assert result.tolist() == [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1], [0, 2, 2, 0]]
