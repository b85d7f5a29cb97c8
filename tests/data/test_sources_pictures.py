"""ISIC 2018 and Kvasir-SEG: photographs are stored smaller, and masks also at native size."""

import numpy as np
import pytest
from PIL import Image

from crkd_cli.errors import CrkdError

INPUT, TRUTH = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"


@pytest.fixture
def disc():
    """A mask [480, 500] of 0 and 255."""
    y, x = np.indices((480, 500))
    return np.where((y - 200) ** 2 + (x - 260) ** 2 < 120**2, 255, 0).astype(np.uint8)


@pytest.fixture
def isic(tmp_path, rng, disc):
    photo = rng.integers(0, 256, (480, 500, 3), dtype=np.uint8)
    for name in (INPUT, TRUTH):
        (tmp_path / "isic" / name).mkdir(parents=True)
    Image.fromarray(photo).save(tmp_path / "isic" / INPUT / "ISIC_0000000.jpg")
    Image.fromarray(photo).save(tmp_path / "isic" / INPUT / "ISIC_0000001.jpg")
    Image.fromarray(disc).save(tmp_path / "isic" / TRUTH / "ISIC_0000000_segmentation.png")
    for name in (INPUT, TRUTH):
        (tmp_path / "isic" / name / "ATTRIBUTION.txt").write_text("a file of the challenge")
    return tmp_path / "isic"


def test_isic(isic, disc, prepared):
    store = prepared("isic2018", isic)
    case = store.cases["ISIC_0000000"]
    assert (case.shape, case.native_shape) == ((320, 320), (480, 500))
    assert store.image(case.id).dtype == np.uint8
    with Image.open(isic / INPUT / "ISIC_0000000.jpg") as photo:
        expected = np.asarray(photo.resize((320, 320), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(store.image(case.id), expected.transpose(2, 0, 1))
    np.testing.assert_array_equal(store.native_label(case.id), disc // 255)
    with Image.open(isic / TRUTH / "ISIC_0000000_segmentation.png") as mask:
        expected = np.asarray(mask.resize((320, 320), Image.Resampling.NEAREST)) // 255
    np.testing.assert_array_equal(store.label(case.id), expected)
    assert not store.cases["ISIC_0000001"].labeled


def test_isic_without_masks(isic, prepared):
    (isic / TRUTH).rename(isic / "elsewhere")
    with pytest.raises(CrkdError, match=f"no ISIC 2018 data in .*: {TRUTH} missing"):
        prepared("isic2018", isic)


def test_kvasir_masks_are_thresholded_at_128(tmp_path, rng, disc, prepared):
    case = "cju0qkwl35piu0993l0dewei2"  # of the official split
    for name in ("images", "masks"):
        (tmp_path / "Kvasir-SEG" / name).mkdir(parents=True)
    photo = rng.integers(0, 256, (480, 500, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / f"Kvasir-SEG/images/{case}.jpg")
    mask_file = tmp_path / f"Kvasir-SEG/masks/{case}.jpg"
    Image.fromarray(np.stack([disc] * 3, -1)).save(mask_file, quality=90)
    with Image.open(mask_file) as mask:
        values = np.asarray(mask)[..., 0]
    assert len(np.unique(values)) > 2  # there is JPEG noise, else this test would be pointless
    store = prepared("kvasir", tmp_path)
    np.testing.assert_array_equal(store.native_label(case), values >= 128)
    np.testing.assert_array_equal(store.native_label(case), disc // 255)
    assert store.spec.classes[1].values == (255,)


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "cases"), [("isic2018", 11), ("kvasir", 14)])
def test_real_cases(shared_data, prepared, name, cases):
    store = prepared(name, shared_data / name)
    assert len(store.cases) == cases
    for case in store.cases.values():
        assert case.labeled
        assert case.shape == (320, 320)
        native = store.native_label(case.id)
        assert native.shape == case.native_shape
        assert set(np.unique(native)) == {0, 1}
        assert native.mean() == pytest.approx(store.label(case.id).mean(), abs=0.01)
        if name == "kvasir":
            raw = shared_data / name / case.source.replace("images", "masks")
            np.testing.assert_array_equal(native, np.asarray(Image.open(raw).convert("L")) >= 128)
