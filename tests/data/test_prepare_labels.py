"""From label files to class numbers in the store: merged masks, ignored pixels, many classes."""

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image

from crkd_cli.cli.bars import progress
from crkd_cli.data.prepare import prepare
from crkd_cli.data.sources.folder import Folder
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError

SHAPE = (20, 30)


@pytest.fixture
def save(tmp_path, rng):
    """save("a", a=array, b_liver=array): an image, and its label files; returns the raw folder."""

    def make(case, **files):
        root = tmp_path / "mine"
        for folder in ("images", "labels"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 200, SHAPE, dtype=np.uint8)
        Image.fromarray(image).save(root / "images" / f"{case}.png")
        for name, label in files.items():
            Image.fromarray(label).save(root / "labels" / f"{name}.png")
        return root

    return make


def run(source, root):
    store = root.parent / "prepared" / "mine"
    report = prepare("mine", source, root, store, progress)
    if report.failure is not None:
        raise report.failure
    return report, store


def box(value, top, bottom, dtype=np.uint8):
    """A mask with `value` in some rows."""
    label = np.zeros(SHAPE, dtype)
    label[top:bottom] = value
    return label


def at_training_size(label):
    """The nearest pixels of a label [20, 30] at 32 × 32."""
    rows, columns = ((np.arange(32) + 0.5)[:, None] * SHAPE / 32).astype(int).T
    return label[np.ix_(rows, columns)]


def describe(root, **lines):
    (root / "dataset.yaml").write_text(yaml.safe_dump(lines, sort_keys=False))


def test_masks_of_one_image_are_united(save):
    root = save("a", a_mask=box(255, 0, 4), a_mask_1=box(255, 2, 6), a_mask_2=box(1, 9, 10))
    _, store = run(Folder(), root)
    np.testing.assert_array_equal(Store(store).native_label("a"), box(1, 0, 6) + box(1, 9, 10))


def test_masks_of_one_class_each_are_merged(save):
    save("a", a_mask_liver=box(255, 0, 4), a_mask_heart=box(1, 4, 6))
    root = save("b", b_mask_liver=box(255, 3, 5))
    report, path = run(Folder(), root)
    store = Store(path)
    assert store.spec.class_names == ("background", "heart", "liver")
    np.testing.assert_array_equal(store.native_label("a"), box(2, 0, 4) + box(1, 4, 6))
    assert [case.class_sizes for case in store.index.cases] == [(420, 60, 120), (540, 0, 60)]
    assert report.classes[1] == "heart (1): in 1 of 2 labels, 5 % of the pixels; 60 pixels"


def test_masks_of_different_classes_must_not_overlap(save):
    root = save("a", a_mask_liver=box(1, 0, 4), a_mask_heart=box(1, 3, 6), a_mask_lung=box(1, 9, 9))
    report, store = run(Folder(), root)
    (error,) = report.errors
    assert (
        "a_mask_heart.png and labels/a_mask_liver.png assign different classes to 30 pixels"
        in error.what
    )
    assert not store.exists()


def test_every_label_file_must_fit_its_image(save):
    root = save("a", a_mask_liver=box(1, 0, 4), a_mask_heart=np.eye(20, 29, dtype=np.uint8))
    report, _ = run(Folder(), root)
    assert "a_mask_heart.png has shape (20, 29), its image (20, 30)" in report.errors[0].what


@pytest.mark.parametrize("stated", [False, True])
def test_ignored_pixels_have_the_number_after_the_last_class(save, stated):
    label = box(1, 0, 4) + box(255, 10, 20)
    root = save("a", a=label)
    if stated:
        describe(root, ignore=255)
    report, path = run(Folder() if stated else Folder(ignore=255), root)
    store = Store(path)
    assert (store.spec.ignore, len(store.spec.classes)) == (255, 2)
    expected = box(1, 0, 4) + box(2, 10, 20)
    np.testing.assert_array_equal(store.native_label("a"), expected)
    np.testing.assert_array_equal(store.label("a"), at_training_size(expected))
    assert store.label("a").dtype == store.native_label("a").dtype == np.uint8
    assert store.cases["a"].class_sizes == (180, 120)
    assert "ignored pixels or voxels (value 255): 300 in 1 of 1 label" in store.index.notes
    assert report.description.ignore == 255


def test_a_mask_counts_where_another_is_ignored(save):
    root = save("a", a_mask_liver=box(255, 0, 4), a_mask_heart=box(9, 3, 6) + box(1, 8, 9))
    _, path = run(Folder(ignore=9), root)
    expected = box(2, 0, 4) + box(3, 4, 6) + box(1, 8, 9)
    np.testing.assert_array_equal(Store(path).native_label("a"), expected)


def test_more_classes_than_uint8_can_count(save):
    label = np.arange(600, dtype=np.uint16).reshape(SHAPE) * 7
    root = save("a", a=label)
    with pytest.raises(CrkdError, match=r"599 different values besides 0 .*dataset\.yaml lists"):
        run(Folder(), root)
    describe(root, classes={f"region {v}": v for v in range(7, 4193, 7)}, ignore=4193)
    _, path = run(Folder(), root)
    store = Store(path)
    expected = np.arange(600).reshape(SHAPE)  # 4193 is the last one, and ignored
    np.testing.assert_array_equal(store.native_label("a"), expected)
    np.testing.assert_array_equal(store.label("a"), at_training_size(expected))
    assert store.label("a").dtype == store.native_label("a").dtype == np.int16
    assert store.spec.classes[598].values == (4186,)
    assert store.cases["a"].class_sizes == (1,) * 599


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 312_782_546, 2**32 + 7], np.uint64),
        ([-5, 0, 3], np.int16),
        ([0, 2**40, 2**52 + 1], np.float64),
    ],
)
def test_any_integers_are_classes(tmp_path, rng, prepared, values, dtype):
    label = np.array(values, dtype)[rng.integers(0, 3, (3, 8, 9))]
    (tmp_path / "mine/images").mkdir(parents=True)
    with h5py.File(tmp_path / "mine/images/a.h5", "w") as file:
        file["image"], file["label"] = rng.normal(size=label.shape), label
    store = prepared("mine", tmp_path / "mine")
    by_number = np.array([info.value for info in store.spec.classes], dtype)
    np.testing.assert_array_equal(by_number[store.label("a")], label)
    assert sorted(by_number.tolist()) == values


def test_a_description_that_ignores_a_class(save):
    root = save("a", a=box(1, 0, 4))
    describe(root, classes={"liver": 1})
    with pytest.raises(CrkdError, match=r"--ignore 1: classes\.liver is 1, the value of"):
        run(Folder(ignore=1), root)


def test_classes_that_are_colors(save):
    colors = {1: (255, 0, 0), 2: (200, 0, 0), 3: (0, 255, 0), 4: (255, 255, 255)}
    numbers = {1: 1, 2: 1, 3: 2, 4: 3}  # 3: ignored
    values = {"a": box(1, 2, 8) + box(2, 8, 14), "b": box(3, 3, 12) + box(4, 12, 20)}
    for case, label in values.items():
        picture = np.zeros((*SHAPE, 3), np.uint8)
        for value, color in colors.items():
            picture[label == value] = color
        root = save(case, **{case: picture})
    with pytest.raises(CrkdError, match=r"classes: \{class 1: '#00ff00', class 2: '#c80000', cl"):
        run(Folder(), save("c"))

    stated = {"tool": ["#ff0000", "#C80000"], "polyp": "#00ff00"}
    describe(root, classes=stated, ignore="#ffffff")
    report, root = run(Folder(), root)
    assert not report.failed
    store = Store(root)
    assert store.spec.class_names == ("background", "tool", "polyp")
    for case, label in values.items():
        expected = np.vectorize(lambda value: numbers.get(value, 0))(label)
        np.testing.assert_array_equal(store.label(case), at_training_size(expected))
    assert report.description.classes == {**stated, "tool": ("#ff0000", "#C80000")}
    assert report.description.ignore == "#ffffff"
    assert store.spec.description == report.description
