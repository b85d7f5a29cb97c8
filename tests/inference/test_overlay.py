"""Overlays: contours where the mask ends, the right aspect, a legend, in 2D and 3D."""

import numpy as np
import pytest

from crkd_cli.data.store import DatasetSpec
from crkd_cli.inference.overlay import draw_overlay

ORANGE, SKY = (230, 159, 0), (86, 180, 233)


def spec(dims: int, z_last: bool = False) -> DatasetSpec:
    return DatasetSpec(
        name="x",
        source="folder",
        classes=("background", "one", "two"),
        channels=1,
        modality="mr",
        dims=dims,
        intensity="zscore",
        z_last=z_last,
    )


def where(picture, color) -> np.ndarray:
    """Rows and columns of the pixels of `color` on the planes: the legend's squares are below them."""
    pixels = np.asarray(picture)[:-36]
    return np.argwhere((pixels == color).all(-1))


def test_the_contour_lies_on_the_edge_of_the_mask():
    labels = np.zeros((64, 64), np.uint8)
    labels[16:48, 8:24] = 1
    picture = draw_overlay(
        np.random.default_rng(0).random((1, 64, 64)), labels, spec(2), None, "case"
    )
    rows, columns = where(picture, ORANGE).T
    top, left = 24 + 12, 12  # under the title, beside the margin; 512 / 64 = 8 pixels a voxel
    assert abs(rows.min() - (top + 16 * 8)) <= 1
    assert abs(rows.max() - (top + 48 * 8 - 1)) <= 1
    assert abs(columns.min() - (left + 8 * 8)) <= 1
    assert abs(columns.max() - (left + 24 * 8 - 1)) <= 1
    inside = np.asarray(picture)[top + 20 * 8 : top + 44 * 8, left + 12 * 8 : left + 20 * 8]
    assert not (inside == ORANGE).all(-1).any()  # contours, not filled shapes


def test_three_planes_have_the_aspect_of_the_spacing():
    """10 slices of 5 mm, 40 × 60 voxels of 1 mm: the planes are 40 × 60, 50 × 60 and 50 × 40 mm."""
    labels = np.zeros((10, 40, 60), np.uint8)
    labels[2:8, 10:30, 20:50] = 2
    volume = np.random.default_rng(0).standard_normal((1, 10, 40, 60))
    picture = draw_overlay(volume, labels, spec(3), (5.0, 1.0, 1.0), "case")
    scale = 512 / 60
    side = round(60 * scale)
    assert picture.width == 12 + side + 12 + side + 12
    tall = round(50 * scale) + 24 + 12
    assert picture.height == 24 + 12 + 2 * tall + 24 + 12
    assert len(where(picture, SKY)) > 0
    assert len(where(picture, ORANGE)) == 0


def test_flat_planes_are_below_the_first():
    """10 slices of 1 mm, 60 × 60 voxels: 60 × 60, 10 × 60 and 10 × 60 mm."""
    labels = np.zeros((10, 60, 60), np.uint8)
    labels[2:8, 10:30, 20:50] = 1
    picture = draw_overlay(np.zeros((1, 10, 60, 60)), labels, spec(3), (1.0, 1.0, 1.0), "case")
    assert picture.size == (
        512 + 24,
        24 + 12 + (512 + 24 + 12) + 2 * (round(512 / 6) + 24 + 12) + 24 + 12,
    )


def test_z_last_shows_the_same_picture():
    labels = np.zeros((8, 20, 30), np.uint8)
    labels[1:5, 4:9, 3:20] = 1
    volume = np.random.default_rng(0).standard_normal((1, 8, 20, 30))
    one = draw_overlay(volume, labels, spec(3), (2.0, 1.0, 0.5), "case")
    two = draw_overlay(
        volume.transpose(0, 3, 2, 1),
        labels.transpose(2, 1, 0),
        spec(3, z_last=True),
        (0.5, 1.0, 2.0),
        "case",
    )
    assert np.array_equal(np.asarray(one), np.asarray(two))


def test_nothing_found_is_drawn_too(dims):
    shape = (9, 30, 21)[:dims]
    picture = draw_overlay(
        np.zeros((1, *shape)),
        np.zeros(shape, np.uint8),
        spec(dims),
        None,
        "a case with a long name " * 4,
    )
    assert len(where(picture, ORANGE)) == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_any_number_type_is_shown_from_black_to_white(dtype):
    image = np.linspace(0, 120, 64 * 64).reshape(1, 64, 64).astype(dtype)
    pixels = np.asarray(draw_overlay(image, np.zeros((64, 64), np.uint8), spec(2), None, "case"))[
        36:548, 12:524
    ]
    assert pixels.min() <= 5
    assert pixels.max() >= 250


def test_the_truth_is_white_and_counts_as_found():
    """Nothing was found of a cube near a corner: the three planes go through it, and show it with 2 and 3 voxels on its sides."""
    truth = np.zeros((24, 24, 24), np.uint8)
    truth[2:8, 2:8, 2:8] = 1
    nothing = np.zeros_like(truth)
    picture = draw_overlay(np.zeros((1, 24, 24, 24)), nothing, spec(3), None, "case", truth)
    side = 6 * 512 / 11
    ring = side**2 - (side - 4) ** 2  # two pixels thick, the corners rounded
    assert len(where(picture, (255, 255, 255))) == pytest.approx(3 * ring, rel=0.1)
    both = draw_overlay(np.zeros((1, 24, 24, 24)), truth, spec(3), None, "case", truth)
    assert len(where(both, (255, 255, 255))) == 0  # under what was found
    assert len(where(both, ORANGE)) == pytest.approx(3 * ring, rel=0.1)
