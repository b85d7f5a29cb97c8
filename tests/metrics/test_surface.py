"""Surface scores against medpy, distances by hand and the empty-mask contract, in 2D and 3D."""

import math

import numpy as np
import pytest
from medpy.metric import binary
from scipy.ndimage import binary_erosion, gaussian_filter, generate_binary_structure

from crkd_cli.metrics.surface import Surface, border, bounding_box, directed, surface

SPACING = (2.5, 0.8, 1.3)


def blob(shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return noise > np.quantile(noise, 0.8)


def cube(shape: tuple[int, ...], start: int, stop: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[(slice(start, stop),) * len(shape)] = True
    return mask


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [None, SPACING], ids=["voxels", "mm"])
def test_agrees_with_medpy(dims, seed, spacing):
    shape = (24, 31, 19)[:dims]
    a, b = blob(shape, seed), blob(shape, seed + 100)
    step = spacing and spacing[:dims]
    scores = surface(a, b, step or (1.0,) * dims, 2.0)
    assert scores.assd == pytest.approx(binary.assd(a, b, step), abs=1e-6)
    assert scores.asd == pytest.approx(binary.asd(a, b, step), abs=1e-6)
    to_b, to_a = directed(a, b, step or (1.0,) * dims)
    # medpy pools both directions; our hd95 is the larger directed percentile
    assert np.percentile(np.hstack([to_b, to_a]), 95) == pytest.approx(
        binary.hd95(a, b, step), abs=1e-6
    )
    assert max(to_b.max(), to_a.max()) == pytest.approx(binary.hd(a, b, step), abs=1e-6)
    assert scores.hd95 == max(np.percentile(to_b, 95), np.percentile(to_a, 95))


def test_the_border_is_the_mask_without_its_erosion(dims):
    mask = blob((15, 18, 21)[:dims], 5)
    mask[0] = True  # beyond the edge of the image counts as outside
    assert np.array_equal(
        border(mask), mask & ~binary_erosion(mask, generate_binary_structure(dims, 1))
    )


def test_the_bounding_box_holds_the_mask_and_nothing_more(dims):
    mask = cube((20,) * dims, 3, 5) | cube((20,) * dims, 9, 12)
    assert bounding_box(mask) == (slice(3, 12),) * dims


@pytest.mark.parametrize("share", [0.002, 0.4], ids=["thin", "scattered"])
def test_thin_and_scattered_masks_agree_with_medpy(dims, rng, share):
    """Both algorithms for distances, on either side of the limit between them."""
    a, b = (rng.random((80, 60, 20)[:dims]) < share for _ in range(2))
    step = SPACING[:dims]
    assert surface(a, b, step, 1.0).assd == pytest.approx(binary.assd(a, b, step), abs=1e-6)


def test_masks_that_are_far_apart_agree_with_medpy(dims):
    """Where a search in a tree would visit most of it."""
    a, b = (np.zeros((400, 6, 6)[:dims], bool) for _ in range(2))
    a[:4], b[-4:, 1:] = True, True
    step = SPACING[:dims]
    assert surface(a, b, step, 1.0).assd == pytest.approx(binary.assd(a, b, step), abs=1e-6)


def test_masks_at_the_edge_of_the_image(dims):
    a, b = cube((9,) * dims, 0, 5), cube((9,) * dims, 4, 9)
    assert surface(a, b, (1.0,) * dims, 1.0).assd == pytest.approx(binary.assd(a, b), abs=1e-6)


def test_two_voxels_by_hand(dims):
    a, b = (np.zeros((8,) * dims, bool) for _ in range(2))
    a[(1,) * dims] = b[(4,) * dims] = True
    apart = 3 * math.hypot(*SPACING[:dims])
    assert surface(a, b, SPACING[:dims], apart + 1e-9) == pytest.approx(
        Surface(apart, apart, apart, 1.0)
    )
    assert surface(a, b, SPACING[:dims], apart - 1e-9).nsd == 0


def test_hd95_is_the_larger_direction():
    """Three distances of 0 and one of 10 from the prediction, three of 0 from the truth."""
    prediction, truth = np.zeros((1, 30), bool), np.zeros((1, 30), bool)
    truth[0, [0, 2, 4]] = True
    prediction[0, [0, 2, 4, 14]] = True
    assert surface(prediction, truth, (1.0, 1.0), 1.0).hd95 == pytest.approx(
        np.percentile([0, 0, 0, 10], 95)
    )
    assert surface(prediction, truth, (1.0, 1.0), 1.0).asd == pytest.approx(10 / 4)
    assert surface(prediction, truth, (1.0, 1.0), 1.0).assd == pytest.approx(10 / 7)
    assert surface(prediction, truth, (1.0, 1.0), 1.0).nsd == pytest.approx(6 / 7)


def test_equal_masks(dims):
    mask = blob((20,) * dims, 1)
    assert surface(mask, mask, (1.0,) * dims, 0.0) == Surface(0, 0, 0, 1)


def test_both_empty(dims):
    nothing = np.zeros((6, 7, 8)[:dims], bool)
    scores = surface(nothing, nothing, (1.0,) * dims, 2.0)
    assert all(math.isnan(value) for value in scores)


@pytest.mark.parametrize("which", ["prediction", "truth"])
def test_one_empty(dims, which):
    shape = (6, 7, 8)[:dims]
    nothing, some = np.zeros(shape, bool), cube(shape, 2, 4)
    pair = (nothing, some) if which == "prediction" else (some, nothing)
    diagonal = math.sqrt(
        sum((side * step) ** 2 for side, step in zip(shape, SPACING[:dims], strict=True))
    )
    assert surface(*pair, SPACING[:dims], 2.0) == pytest.approx(
        Surface(diagonal, diagonal, diagonal, 0)
    )
