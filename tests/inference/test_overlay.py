"""Overlays: contours on mask boundaries, the right planes and aspect, names and notes."""

import msgspec
import numpy as np
import pytest
from matplotlib.backends.backend_agg import RendererAgg
from scipy import ndimage

from crkd_cli.data.store import ChannelInfo, DatasetSpec, numbered_classes
from crkd_cli.inference.overlay import class_color, draw_overlay

ORANGE, SKY, WHITE = (230, 159, 0), (86, 180, 233), (255, 255, 255)


def spec(dims: int, z_last: bool = False, modality: str = "MR") -> DatasetSpec:
    return DatasetSpec(
        name="x",
        source="folder",
        classes=numbered_classes(("background", "one", "two")),
        channels=(ChannelInfo(modality=modality, intensity="zscore"),),
        dims=dims,
        z_last=z_last,
    )


def gray(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(1, *shape))


def panels(picture) -> list[np.ndarray]:
    """Cut the planes out of a picture, top to bottom: large rectangles on an even background."""
    pixels = np.asarray(picture)
    components, _ = ndimage.label((pixels != pixels[0, 0]).any(-1))
    found = []
    for number, box in enumerate(ndimage.find_objects(components), start=1):
        component = components[box] == number
        if component.size > 1000 and component.mean() > 0.95:
            found.append(pixels[box])
    return found


def has_color(panel: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Mark the pixels of about this color."""
    return np.abs(panel.astype(int) - color).max(-1) < 40


@pytest.fixture
def texts(monkeypatch) -> list[str]:
    """Collect the texts that are drawn."""
    drawn = []
    draw_text = RendererAgg.draw_text

    def record(self, gc, x, y, text, *args, **kwargs):
        drawn.append(text)
        return draw_text(self, gc, x, y, text, *args, **kwargs)

    monkeypatch.setattr(RendererAgg, "draw_text", record)
    return drawn


def test_contours_run_along_the_boundary_of_their_mask_and_nowhere_else():
    labels = np.zeros((64, 64), np.uint8)
    labels[16:48, 0:24] = 1  # at the edge of the image
    labels[20:40, 34:60] = 2
    (panel,) = panels(draw_overlay(gray(64, 64) / 4, labels, spec(2), None, "case"))
    rows, columns = (np.arange(side) * 64 // side for side in panel.shape[:2])
    voxel = panel.shape[0] / 64
    for k, color in ((1, ORANGE), (2, SKY)):
        mask = labels[np.ix_(rows, columns)] == k
        boundary = mask & ~ndimage.binary_erosion(mask)
        line = has_color(panel, color)
        from_boundary = ndimage.distance_transform_edt(~boundary)
        from_line = ndimage.distance_transform_edt(~line)
        assert from_boundary[line].max() < 0.5 * voxel + 2
        assert from_line[boundary].max() < 0.75 * voxel + 2  # corners are cut


def test_both_contours_of_neighbors_are_visible():
    labels = np.ones((32, 32), np.uint8)
    labels[8:24, 8:24] = 2
    (panel,) = panels(draw_overlay(gray(32, 32) / 4, labels, spec(2), None, "case"))
    middle = panel[panel.shape[0] // 2, panel.shape[1] // 8 : panel.shape[1] // 2][None]
    assert has_color(middle, ORANGE).any()
    assert has_color(middle, SKY).any()


def test_planes_have_the_aspect_of_the_spacing_and_one_scale():
    """10 slices of 5 mm, 40 × 60 voxels of 1 mm: the planes are 40 × 60, 50 × 60, 50 × 40 mm."""
    labels = np.zeros((10, 40, 60), np.uint8)
    picture = draw_overlay(gray(10, 40, 60), labels, spec(3), (5.0, 1.0, 1.0), "case")
    sizes = np.array([panel.shape[:2] for panel in panels(picture)])
    millimeters = np.array([(40, 60), (50, 60), (50, 40)])
    scale = sizes[0, 1] / 60
    assert sizes == pytest.approx(millimeters * scale, abs=2.5)


def test_planes_go_through_the_most_voxels_with_z_upwards(texts):
    """The color of a voxel is its position: red grows with z, green with y, blue with x."""
    indices = np.indices((20, 30, 40))
    image = (40 + 5 * indices).astype(np.uint8)
    labels = np.zeros((20, 30, 40), np.uint8)
    labels[2:5, 6:20, 10:13] = 2
    labels[7, 8, 11] = 1
    picture = draw_overlay(image, labels, spec(3, modality="RGB"), (1.0, 1.0, 1.0), "case")
    # z = 2, 3 and 4 have equally many, so the middle one; y = 8 and x = 11 have one more.
    assert {"z = 4 of 20", "y = 9 of 30", "x = 12 of 40"} <= set(texts)
    z, y, x = panels(picture)
    for panel, channel, index in ((z, 0, 3), (y, 1, 8), (x, 2, 11)):
        assert np.median(panel[..., channel]) == 40 + 5 * index
    corners = {"top left": np.s_[3, 3], "top right": np.s_[3, -4], "bottom left": np.s_[-4, 3]}
    for panel, down, right, sides in (
        (z, 1, 2, (30, 40)),
        (y, 0, 2, (20, 40)),
        (x, 0, 1, (20, 30)),
    ):
        top_left, top_right, bottom_left = (panel[at].astype(int) for at in corners.values())
        height, width = (5 * (side - 1) for side in sides)
        fall = height if down == 1 else -height  # z points up
        assert (bottom_left - top_left)[down] == pytest.approx(fall, abs=8)
        assert (top_right - top_left)[right] == pytest.approx(width, abs=8)


def test_z_last_shows_the_same_picture():
    labels = np.zeros((8, 20, 30), np.uint8)
    labels[1:5, 4:9, 3:20] = 1
    volume = gray(8, 20, 30)
    z_first = draw_overlay(volume, labels, spec(3), (2.0, 1.0, 0.5), "case")
    z_last = draw_overlay(
        volume.transpose(0, 3, 2, 1),
        labels.transpose(2, 1, 0),
        spec(3, z_last=True),
        (0.5, 1.0, 2.0),
        "case",
    )
    assert np.array_equal(np.asarray(z_first), np.asarray(z_last))


def test_classes_that_are_missing_are_named(dims, texts):
    shape = (9, 30, 21)[:dims]
    labels = np.zeros(shape, np.uint8)
    labels[(slice(3, 6),) * dims] = 2
    picture = draw_overlay(gray(*shape) / 4, labels, spec(dims), (1.0,) * dims, "case.png")
    assert {"case.png", "one: none", "two"} <= set(texts)
    assert len(panels(picture)) == {2: 1, 3: 3}[dims]
    for panel in panels(picture):
        assert has_color(panel, SKY).any()
        assert not has_color(panel, ORANGE).any()


def test_an_empty_prediction_is_drawn(dims, texts):
    shape = (9, 30, 21)[:dims]
    picture = draw_overlay(np.zeros((1, *shape)), np.zeros(shape, np.uint8), spec(dims), None, "x")
    assert {"one: none", "two: none"} <= set(texts)
    assert len(panels(picture)) == {2: 1, 3: 3}[dims]


@pytest.mark.parametrize(
    "shape", [(1, 1), (300, 2), (2, 300), (1, 90, 90), (300, 9, 9), (90, 90, 1)]
)
def test_images_of_extreme_shape_and_many_classes_are_drawn(shape):
    names = ("background", *(f"class {k} with a rather long name" for k in range(1, 40)))
    many = msgspec.structs.replace(spec(len(shape)), classes=numbered_classes(names))
    labels = np.ones(shape, np.uint8)
    picture = draw_overlay(gray(*shape), labels, many, (1.0,) * len(shape), "case", labels)
    assert has_color(np.asarray(picture), ORANGE).any()


def lab(color: str) -> np.ndarray:
    """Convert sRGB to CIELAB (CIE 15:2004, D65), in which a distance of 2 is visible."""
    srgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = (to_xyz @ linear) / (0.9505, 1.0, 1.089)
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_colors_of_25_classes_can_be_told_apart_and_from_the_reference():
    assert lab("#ffffff") == pytest.approx([100, 0, 0], abs=0.1)
    assert lab("#ff0000") == pytest.approx([53.24, 80.09, 67.20], abs=0.1)  # published values
    colors = np.array([lab(class_color(k)) for k in range(1, 26)] + [lab("#ffffff")])
    distances = np.linalg.norm(colors[:, None] - colors, axis=2)
    assert distances[~np.eye(26, dtype=bool)].min() > 19
    neighbors = np.diagonal(distances, offset=1)[:24]
    assert neighbors.min() > 40
    assert colors[:, 0].min() > 40  # the background has a lightness of 8


def test_the_legend_of_many_classes_lists_those_in_the_picture(texts):
    many = msgspec.structs.replace(
        spec(2), classes=numbered_classes(f"class {k}" for k in range(300))
    )
    labels = np.zeros((32, 32), np.int16)
    labels[4:12, 4:12], labels[20:28, 20:28] = 7, 299
    picture = draw_overlay(gray(32, 32) / 4, labels, many, None, "case")
    assert [text for text in texts if text.startswith("class")] == ["class 7", "class 299"]
    (panel,) = panels(picture)
    colored = panel[np.ptp(panel.astype(int), axis=-1) > 60]
    assert len(np.unique(colored // 64, axis=0)) > 1  # two hues
    texts.clear()
    labels = np.arange(30 * 32).reshape(30, 32) // 32
    draw_overlay(gray(30, 32), labels, many, None, "case")
    assert len([text for text in texts if text.startswith("class")]) == 24
    assert "and 5 more" in texts


def test_unknown_spacing_of_a_volume_is_noted(dims, texts):
    shape = (9, 9, 9)[:dims]
    draw_overlay(gray(*shape), np.zeros(shape, np.uint8), spec(dims), None, "case")
    note = "case (spacing unknown, assumed equal)"
    assert (note in texts) == (dims == 3)
    texts.clear()
    draw_overlay(gray(*shape), np.zeros(shape, np.uint8), spec(dims), (1.0,) * dims, "case")
    assert "case" in texts


def test_names_may_hold_any_characters():
    """Dollar signs are no formula, and letters that the font lacks cause no warning."""
    labels = np.ones((9, 9), np.uint8)
    draw_overlay(gray(9, 9), labels, spec(2), None, r"a $\nothing$ 心脏 " + "and a long name " * 9)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_any_number_type_is_shown_from_black_to_white(dtype):
    values = np.random.default_rng(0).permutation(np.linspace(0, 120, 64 * 64))
    image = values.reshape(1, 64, 64).astype(dtype)
    (panel,) = panels(draw_overlay(image, np.zeros((64, 64), np.uint8), spec(2), None, "case"))
    assert panel.min() <= 5
    assert panel.max() >= 250


def test_contours_fit_an_image_that_is_smaller_than_its_labels():
    labels = np.zeros((64, 96), np.uint8)
    labels[16:48, 24:72] = 1
    image = labels[None, ::2, ::2].astype(np.float32)
    (panel,) = panels(draw_overlay(image, labels, spec(2), None, "case"))
    assert panel.shape[1] / panel.shape[0] == pytest.approx(1.5, rel=0.02)
    rows, columns = np.nonzero(has_color(panel, ORANGE))
    bounds = (rows.min(), rows.max(), columns.min(), columns.max())
    bright = np.argwhere(has_color(panel, WHITE))
    (top, left), (bottom, right) = bright.min(0), bright.max(0)
    assert bounds == pytest.approx((top, bottom, left, right), abs=8)


@pytest.mark.parametrize("size", [(3, 16, 16), (24, 64, 64)])
def test_a_volume_of_another_size_than_its_labels_is_cut_at_the_same_place(size):
    """Brightness is the depth: 1 to 12 slices of the labels, of which the 10th is shown."""
    labels = np.zeros((12, 32, 32), np.uint8)
    labels[9, 8:24, 8:24] = 1
    depth = (np.arange(size[0]) + 0.5) / size[0]
    image = np.broadcast_to(depth[:, None, None], size)[None]
    axial, *_ = panels(draw_overlay(image, labels, spec(3), (4.0, 1.0, 1.0), "case"))
    low, high = np.percentile(depth, (0.5, 99.5))
    shown = depth[19 * size[0] // 24]
    corner = axial[5:20, 5:20].mean()
    assert corner == pytest.approx(min(255, 255 * (shown - low) / (high - low)), abs=3)


def test_without_labels_planes_go_through_the_middle(texts):
    draw_overlay(gray(9, 8, 7), np.zeros((9, 8, 7), np.uint8), spec(3), None, "case")
    assert {"z = 5 of 9", "y = 4 of 8", "x = 4 of 7"} <= set(texts)


def test_the_reference_counts_for_the_choice_of_planes(texts):
    labels, reference = np.zeros((2, 9, 20, 20), np.uint8)
    labels[2, 5:9, 5:9] = 1
    reference[6, 4:10, 4:10] = 1
    draw_overlay(gray(9, 20, 20), labels, spec(3), None, "case", reference)
    assert "z = 7 of 9" in texts


def test_the_reference_is_white_and_the_picture_zooms_in_on_it():
    """A cube of 6 voxels near a corner is missed: each plane shows it in a view of 11 voxels."""
    reference = np.zeros((24, 24, 24), np.uint8)
    reference[2:8, 2:8, 2:8] = 1
    image = np.zeros((1, 24, 24, 24))
    missed = draw_overlay(image, np.zeros_like(reference), spec(3), None, "case", reference)
    assert len(panels(missed)) == 3
    for panel in panels(missed):
        rows, columns = np.nonzero(has_color(panel, WHITE))
        assert np.ptp(rows) / panel.shape[0] == pytest.approx(5.75 / 11, abs=0.03)
        assert np.ptp(columns) / panel.shape[1] == pytest.approx(5.75 / 11, abs=0.03)


def test_ignored_pixels_of_the_reference_are_not_drawn():
    reference = np.zeros((24, 24), np.uint8)
    reference[2:8, 2:8] = 1
    ignored = reference.copy()
    ignored[12:20, 12:20] = 3  # of classes 0 to 2
    labels = np.zeros_like(reference)
    pictures = [
        np.asarray(draw_overlay(gray(24, 24), labels, spec(2), None, "case", layer))
        for layer in (reference, ignored)
    ]
    np.testing.assert_array_equal(*pictures)


def test_prediction_and_reference_are_visible_where_they_coincide(texts):
    """The contour of the prediction is solid, and about half of it is covered by white dashes."""
    reference = np.zeros((24, 24, 24), np.uint8)
    reference[2:8, 2:8, 2:8] = 1
    image = np.zeros((1, 24, 24, 24))
    for panel in panels(draw_overlay(image, reference, spec(3), None, "case", reference)):
        orange, white = (has_color(panel, color).sum() for color in (ORANGE, WHITE))
        assert 0.3 < white / (orange + white) < 0.7
    assert "reference" in texts
