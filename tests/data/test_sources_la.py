"""LA in its three layouts. The NRRD files are written from arrays, so the result is known."""

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from crkd_cli.data.cases import ImageFile
from crkd_cli.data.obtain import choose_source
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError

ID, OTHER = "0RZDK210BSMWAA6467LU", "1D7CUD1955YZPGK8XHJX"


def write_nrrd(folder, image, label):
    """Write arrays [x, y, z] like the challenge's files: 8 bits, labels 0 and 255, 0.625 mm."""
    folder.mkdir(parents=True)
    for name, array in (("lgemri", image), ("laendo", label)):
        written = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        written.SetSpacing((0.625, 0.625, 0.625))
        sitk.WriteImage(written, str(folder / f"{name}.nrrd"), useCompression=True)


@pytest.fixture
def atrium(rng):
    """An image and a label [300, 280, 6]: a box of 41 × 131 voxels, near the edge in y."""
    image = rng.integers(0, 255, (300, 280, 6), dtype=np.uint8)
    label = np.zeros(image.shape, np.uint8)
    label[100:141, 5:136, 2:4] = 255
    return image, label


def test_nrrd_is_normalized_over_the_raw_scan(atrium, tmp_path, prepared):
    image, label = atrium
    write_nrrd(tmp_path / "Training Set" / ID, image, label)
    store = prepared("la", tmp_path / "Training Set")
    assert store.cases[ID].shape == (300, 280, 6)
    assert store.cases[ID].spacing_mm == (0.625, 0.625, 0.625)
    assert store.spec.classes[1].values == (255, 1)
    assert store.cases[ID].intensity[0].mean == pytest.approx(image.mean())
    expected = (image - image.mean()) / image.std()
    np.testing.assert_allclose(store.image(ID)[0], expected, atol=1e-5)
    np.testing.assert_array_equal(store.label(ID), label // 255)


def test_published_crop(atrium, tmp_path, prepared):
    image, label = atrium
    write_nrrd(tmp_path / "raw" / ID, image, label)
    whole = (image - image.mean()) / image.std()
    store = prepared("la", tmp_path / "raw", published_crop=True)
    width, height, depth = store.cases[ID].shape
    # x: 41 wide, so (112 − 40) // 2 = 36 more on each side, and a margin of 10 to 19.
    # y: wider than 112, and the margin ends at the edge.
    assert 40 + 2 * (36 + 10) <= width <= 40 + 2 * (36 + 19)
    assert 135 + 10 <= height <= 135 + 19
    assert depth == 6
    assert store.label(ID).sum() == (label > 0).sum()
    inside = np.argwhere(store.label(ID))[0]
    np.testing.assert_allclose(store.image(ID)[0][tuple(inside)], whole[100, 5, 2], atol=1e-5)
    assert any("--published-crop" in note for note in store.index.notes)
    first = store.image(ID).copy()
    second = prepared("la", tmp_path / "raw", published_crop=True).image(ID)
    np.testing.assert_array_equal(first, second)


def test_both_h5_layouts_are_stored_unchanged(tmp_path, rng, prepared):
    image = rng.normal(size=(20, 18, 8)).astype(np.float32) * 3 + 1  # cropped: mean not zero
    label = rng.integers(0, 2, image.shape, dtype=np.uint8)
    (tmp_path / "raw" / ID).mkdir(parents=True)
    for path in (tmp_path / "raw" / ID / "mri_norm2.h5", tmp_path / "raw" / f"{OTHER}.h5"):
        with h5py.File(path, "w") as file:
            file["image"], file["label"] = image, label
    store = prepared("la", tmp_path / "raw")
    assert list(store.cases) == [ID, OTHER]
    for case in (ID, OTHER):
        np.testing.assert_array_equal(store.image(case)[0], image)
        np.testing.assert_array_equal(store.label(case), label)
        assert store.cases[case].spacing_mm == (0.625, 0.625, 0.625)
    assert any("cropped in plane around the label" in note for note in store.index.notes)
    with pytest.raises(CrkdError, match="already cropped; drop --published-crop"):
        prepared("la", tmp_path / "raw", published_crop=True)


def test_prediction_reads_images_like_preparation(atrium, tmp_path, prepared):
    write_nrrd(tmp_path / "raw" / ID, *atrium)
    store: Store = prepared("la", tmp_path / "raw")
    source = choose_source("la", tmp_path, tmp_path, None, False)
    path = tmp_path / "raw" / ID / "lgemri.nrrd"
    volume = source.finish(source.open_image((ImageFile(path),), store.spec), path, store.spec)
    np.testing.assert_array_equal(volume.array, store.image(ID))


@pytest.mark.realdata
def test_real_h5_volumes_and_nrrd_files_written_from_one(shared_data, tmp_path, prepared):
    folder = shared_data / "la" / "2018LA_Seg_Training Set"
    with h5py.File(folder / ID / "mri_norm2.h5") as file:
        image, label = file["image"][()], file["label"][()]
    store = prepared("la", folder)
    assert len(store.cases) == 6
    np.testing.assert_array_equal(store.image(ID)[0], image)
    np.testing.assert_array_equal(store.label(ID), label)
    write_nrrd(tmp_path / "raw" / ID, image, label * 255)
    again = prepared("la", tmp_path / "raw")
    np.testing.assert_allclose(again.image(ID)[0], (image - image.mean()) / image.std(), atol=1e-4)
    np.testing.assert_array_equal(again.label(ID), label)
