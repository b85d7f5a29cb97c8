"""Own data: all formats, 2D and 3D, and how label values become classes."""

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from crkd_cli.data.make_splits import make_split
from crkd_cli.data.obtain import choose_source
from crkd_cli.errors import CrkdError, UsageError


def save(path, array, spacing=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".h5":
        name = "image" if path.parent.name == "images" else "label"
        with h5py.File(path, "w") as file:
            file[name] = array
    elif path.suffix in (".png", ".jpg", ".tif") and (array.ndim == 2 or array.shape[-1] == 3):
        Image.fromarray(array).save(path)
    elif path.suffix == ".tif":
        pages = [Image.fromarray(page) for page in array]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    else:
        image = sitk.GetImageFromArray(array)
        if spacing:
            image.SetSpacing(spacing[::-1])
        sitk.WriteImage(image, str(path))


@pytest.fixture
def make_raw(tmp_path, rng):
    """make_raw(".png", (20, 24)): two images, the first with labels 0, 1, 2 in `labels/`."""

    def make(
        kind, shape, label_kind=None, spacing=None, labels="labels", ending="", dtype=np.uint8
    ):
        root = tmp_path / "mine"
        for case in ("a", "b"):
            image = rng.integers(1, 200, shape).astype(dtype)
            save(root / "images" / f"{case}{kind}", image, spacing)
        label = rng.integers(0, 3, shape[:2] if shape[-1] == 3 else shape).astype(np.uint8)
        save(root / labels / f"a{ending}{label_kind or kind}", label, spacing)
        return root, label

    return make


@pytest.mark.parametrize(
    ("kind", "shape", "modality", "intensity", "channels"),
    [
        (".png", (20, 25), "gray", "minmax", 1),
        (".png", (20, 25, 3), "RGB", "uint8", 3),
        (".tif", (20, 25), "gray", "minmax", 1),
        (".tif", (4, 20, 25), "MR", "zscore", 1),
        (".nii.gz", (4, 20, 25), "MR", "zscore", 1),
        (".nrrd", (4, 20, 25), "MR", "zscore", 1),
        (".mha", (4, 20, 25), "MR", "zscore", 1),
        (".mha", (20, 25), "gray", "minmax", 1),
        (".h5", (4, 20, 25), "MR", "zscore", 1),
        (".h5", (20, 25), "gray", "minmax", 1),
    ],
)
def test_every_format(make_raw, prepared, kind, shape, modality, intensity, channels):
    root, label = make_raw(kind, shape)
    store = prepared("mine", root)
    spec = store.spec
    (channel,) = spec.channels
    assert (channel.modality, channel.intensity) == (modality, intensity)
    assert (spec.channel_count, spec.dims) == (channels, label.ndim)
    assert spec.class_names == ("background", "class 1", "class 2")
    assert [case.labeled for case in store.index.cases] == [True, False]
    np.testing.assert_array_equal(store.native_label("a"), label)
    image = store.image("a")
    # Pictures are stored at the size of training.
    assert image.shape == (channels, *(label.shape if spec.dims == 3 else (32, 32)))
    if intensity == "zscore":
        assert abs(float(image.mean())) < 1e-5
        assert float(image.std()) == pytest.approx(1, abs=1e-5)
    if intensity == "minmax":
        assert 0 <= image.min() < 0.1 < 0.9 < image.max() <= 1
    states_spacing = kind in (".nii.gz", ".nrrd", ".mha")
    case = store.cases["a"]
    spacing = case.spacing_mm if spec.dims == 3 else case.native_spacing_mm
    assert spacing == ((1.0,) * label.ndim if states_spacing else None)


def test_sixteen_bit_tiff_and_jpg_photos(tmp_path, rng, prepared):
    values = rng.integers(0, 60_000, (16, 16)).astype(np.uint16)
    save(tmp_path / "a/images/x.tif", values)
    save(tmp_path / "a/labels/x.png", (values > 30_000).astype(np.uint8))
    expected = (values.astype(float) - values.min()) / (values.max() - values.min())
    np.testing.assert_allclose(prepared("a", tmp_path / "a").image("x")[0], expected, atol=1e-6)
    save(tmp_path / "b/images/x.jpg", rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    save(tmp_path / "b/labels/x.png", np.eye(16, dtype=np.uint8))
    assert prepared("b", tmp_path / "b").image("x").shape == (3, 16, 16)


@pytest.mark.parametrize("ending", ["_mask", "_gt", "_segmentation", "_seg", "_label", "_labels"])
def test_pairs_by_stem(make_raw, prepared, ending):
    root, _ = make_raw(".png", (9, 8), labels="masks", ending=ending)
    (root / "labels").mkdir()  # empty: masks/ is meant
    assert [case.labeled for case in prepared("mine", root).index.cases] == [True, False]


def test_nnunet_names(tmp_path, rng, prepared):
    root = tmp_path / "Dataset001"
    save(root / "imagesTr/heart_1_0000.nii.gz", rng.normal(size=(3, 8, 8)))
    save(root / "labelsTr/heart_1.nii.gz", rng.integers(0, 2, (3, 8, 8)).astype(np.uint8))
    assert prepared("heart", root).cases["heart_1"].labeled


def test_h5_files_with_a_label(tmp_path, rng, prepared):
    (tmp_path / "mine/images").mkdir(parents=True)
    for case, names in (("a", ("image", "label")), ("b", ("image",))):
        with h5py.File(tmp_path / f"mine/images/{case}.h5", "w") as file:
            for name in names:
                file[name] = rng.integers(0, 2, (3, 8, 8)).astype(np.uint8)
    store = prepared("mine", tmp_path / "mine")
    assert [case.labeled for case in store.index.cases] == [True, False]


def test_h5_files_with_labels_and_channels_that_are_not_described(tmp_path, rng, prepared):
    (tmp_path / "images").mkdir()
    with h5py.File(tmp_path / "images" / "a.h5", "w") as file:
        file["image"] = rng.normal(size=(2, 3, 8, 8))
        file["label"] = rng.integers(0, 2, (3, 8, 8)).astype(np.uint8)
    with pytest.raises(AssertionError, match=r"shape \(2, 3, 8, 8\).* list all in dataset.yaml"):
        prepared("mine", tmp_path)


def test_spacing(make_raw, prepared, tmp_path):
    root, _ = make_raw(".tif", (4, 20, 25))
    assert prepared("mine", root, spacing="5, 0.5, 0.5").cases["a"].spacing_mm == (5.0, 0.5, 0.5)
    assert prepared("mine", root, spacing="2").cases["a"].spacing_mm == (2.0, 2.0, 2.0)
    with pytest.raises(UsageError, match="--spacing has 2 numbers, but mine is 3D: give 1 or 3"):
        prepared("mine", root, spacing="1,1")
    for wrong in ("0,1,1", "a", "1,2,3,4", "nan", "1e-320"):
        with pytest.raises(UsageError, match="expected mm from 1e-06 to 10000"):
            choose_source("mine", root, tmp_path, wrong, False)


def test_spacing_in_the_file_is_kept(make_raw, prepared):
    root, _ = make_raw(".nrrd", (4, 20, 25), spacing=(6.0, 0.8, 0.7))
    store = prepared("mine", root, spacing="1")
    assert store.cases["a"].spacing_mm == pytest.approx((6.0, 0.8, 0.7))
    assert sum("--spacing applies to the others only" in note for note in store.index.notes) == 1


def save_labels(root, rng, *arrays):
    """Save 2D label maps, each with a random image."""
    for number, array in enumerate(arrays):
        save(root / f"images/{number}.png", rng.integers(0, 200, array.shape, dtype=np.uint8))
        save(root / f"labels/{number}.png", array.astype(np.uint8))


def test_classes_are_numbered_without_gaps_over_all_labels(tmp_path, rng, prepared):
    save_labels(tmp_path / "m", rng, np.array([[0, 2], [5, 0]]), np.array([[5, 5], [0, 255]]))
    store = prepared("m", tmp_path / "m")
    assert store.spec.class_names == ("background", "class 2", "class 5", "class 255")
    assert store.native_label("0").tolist() == [[0, 1], [2, 0]]
    assert store.native_label("1").tolist() == [[2, 2], [0, 3]]
    assert [case.class_sizes for case in store.index.cases] == [(2, 1, 1, 0), (1, 0, 2, 1)]
    assert [info.values for info in store.spec.classes] == [(0,), (2,), (5,), (255,)]


def test_masks_of_0_and_255_have_two_classes_even_as_jpeg(tmp_path, rng, prepared):
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    save_labels(tmp_path / "m", rng, mask)
    assert prepared("m", tmp_path / "m").spec.class_names == ("background", "class 255")
    Image.fromarray(mask).save(tmp_path / "m/labels/0.jpg", quality=85)
    (tmp_path / "m/labels/0.png").unlink()
    np.testing.assert_array_equal(prepared("m", tmp_path / "m").label("0"), mask // 255)


def test_label_maps_without_zero_have_a_background(tmp_path, rng, prepared):
    save_labels(tmp_path / "m", rng, np.array([[1, 2], [2, 1]]))
    store = prepared("m", tmp_path / "m")
    assert store.spec.class_names == ("background", "class 1", "class 2")


def test_values_that_cannot_be_classes(tmp_path, rng, prepared):
    save_labels(tmp_path / "m", rng, np.arange(100).reshape(10, 10))
    with pytest.raises(CrkdError, match=r"99 different values .*too many to be classes"):
        prepared("m", tmp_path / "m")
    save_labels(tmp_path / "n", rng, np.zeros((4, 4)))
    with pytest.raises(CrkdError, match="no label contains more than background: every value is 0"):
        prepared("n", tmp_path / "n")


def test_errors_explain_why_there_is_no_label(make_raw, prepared):
    root, label = make_raw(".nrrd", (3, 9, 8))
    (root / "labels/a.nrrd").rename(root / "labels/heart_a.nrrd")
    names = (
        r"labels contains 1 label map, but none has the name of an image \(heart_a …; expected a\)"
    )
    with pytest.raises(CrkdError, match=names):
        prepared("mine", root)
    (root / "labels/heart_a.nrrd").unlink()
    with pytest.raises(CrkdError, match=r"labels contains no label map; put"):
        prepared("mine", root)
    (root / "labels").rmdir()
    with pytest.raises(CrkdError, match=r"mine has no labels/ \(or masks/, labelsTr/\)"):
        prepared("mine", root)
    save(root / "labels/a.nrrd", label + np.float32(0.5))
    with pytest.raises(CrkdError, match=r"a\.nrrd contains fractions, .*images and labels swapped"):
        prepared("mine", root)


def test_a_value_in_only_one_label_is_noted(tmp_path, rng, prepared):
    save_labels(tmp_path / "m", rng, *[np.array([[0, 1], [1, 0]])] * 2, np.array([[0, 1], [7, 7]]))
    notes = " ".join(prepared("m", tmp_path / "m").index.notes)
    labels = "1 of 3 labels (2.png; pixels or voxels: 2)"
    assert f"class 7 is in {labels}: a stray value?" in notes
    assert "class 1 (1" not in notes


def test_folders_without_images(tmp_path, prepared):
    with pytest.raises(CrkdError, match="no images/ in"):
        prepared("m", tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(CrkdError, match=r"images contains no image; supported formats: \.png"):
        prepared("m", tmp_path)


def test_left_out_files_are_noted(make_raw, prepared):
    root, _ = make_raw(".png", (9, 8))
    save(root / "images/Pat01.png", np.eye(9, 8, dtype=np.uint8))
    for name in ("other", "pta01"):
        save(root / f"labels/{name}.png", np.zeros((9, 8), np.uint8))
    (root / "images/film.avi").write_bytes(b"x")
    (root / "images/.DS_Store").write_bytes(b"x")
    notes = " ".join(prepared("mine", root).index.notes)
    assert "no image has the name of this label): labels/other.png, labels/pta01.png" in notes
    assert "pta01: did you mean Pat01?" in notes
    assert "left out (not in a supported image format): images/film.avi" in notes


def write_table(root, *lines):
    # Spreadsheet programs write this encoding.
    (root / "patients.csv").write_text("\n".join(lines), encoding="utf-8-sig")


def test_images_of_one_patient_stay_together(tmp_path, rng, prepared):
    save_labels(tmp_path / "m", rng, *[np.array([[0, 1], [1, 0]])] * 6)
    write_table(
        tmp_path / "m",
        "image,side,patient",
        "0.png,left,anna",
        "1,right, anna",
        *(f"{n}.png,left,p{n}" for n in (2, 3, 4, 5)),
    )
    store = prepared("m", tmp_path / "m")
    assert list(store.groups) == ["anna", "p2", "p3", "p4", "p5"]
    assert [case.id for case in store.groups["anna"]] == ["0", "1"]
    assert [case.group for case in store.index.cases[2:]] == ["p2", "p3", "p4", "p5"]
    for seed in range(5):
        split = make_split(store, "1", "1", "1", seed).split
        assert sorted((*split.train, *split.val, *split.test)) == ["anna", "p2", "p3", "p4", "p5"]
        parts = ("labeled", "unlabeled", "val", "test")
        (part,) = [part for part in parts if "anna" in getattr(split, part)]
        assert {"0", "1"} <= set(split.cases(store, part))


def test_errors_in_the_table_of_patients(make_raw, prepared):
    root, _ = make_raw(".png", (9, 8))
    write_table(root, "image,patient", "a.png,anna")
    with pytest.raises(CrkdError, match=r"patients\.csv lacks 1 image: b; add a line with the"):
        prepared("mine", root)
    write_table(root, "image,patient", "a.png,anna", "", "b.png,")
    with pytest.raises(CrkdError, match=r"patients\.csv, line 4, lacks the patient; expected"):
        prepared("mine", root)
    write_table(root, "image;patient", "a.png;anna", "b.png;ben")
    with pytest.raises(CrkdError, match=r"line 2, lacks the image; .* first line: image,patient"):
        prepared("mine", root)
    write_table(root, "image,patient", "a.png,anna", "a,ben", "b,ben")
    with pytest.raises(
        CrkdError, match=r"the image a to two patients, anna and ben; keep one line"
    ):
        prepared("mine", root)
    (root / "patients.csv").write_bytes("image,patient\nä,anna".encode("latin-1"))
    with pytest.raises(
        CrkdError, match=r"patients\.csv cannot be read .*; save it as CSV in UTF-8"
    ):
        prepared("mine", root)
    write_table(root, "image,patient", "a.png,anna", "b.png,anna", "c.png,anna")
    note = "lines of patients.csv without an image, ignored: 1 (c.png)"
    assert note in prepared("mine", root).index.notes
