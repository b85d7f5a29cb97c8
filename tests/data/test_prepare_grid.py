"""Volumes are stored on the grid of the plan, and their labels also on that of their files."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from crkd_cli.data.cases import labeled_case
from crkd_cli.data.grid import resample_image, resample_label
from crkd_cli.data.labels import ClassAssignment
from crkd_cli.data.plan import Plan
from crkd_cli.data.prepare_case import (
    CaseResult,
    case_info,
    number_label,
    read_case,
    store_class_numbers,
)
from crkd_cli.data.raw.formats import Volume
from crkd_cli.data.sources.folder import Folder
from crkd_cli.data.store import (
    RECIPE,
    ChannelInfo,
    DatasetSpec,
    Index,
    Store,
    numbered_classes,
    write_index,
)
from crkd_cli.errors import CrkdError

SHAPE = (12, 10, 6)  # x, y, z
AFFINE = np.diag([-0.8, -1.0, 3.0, 1.0])  # LPS


def spec(plan: Plan | None) -> DatasetSpec:
    return DatasetSpec(
        name="mine",
        source="folder",
        classes=numbered_classes(("background", "liver", "tumor")),
        channels=(ChannelInfo(modality="MR", intensity="zscore"),),
        dims=3,
        ignore=255,
        plan=plan,
    )


def write_pair(root: Path, rng: np.random.Generator, affine=AFFINE) -> tuple[np.ndarray, ...]:
    """Write an image and its label with the ignored value 255; return their arrays [x, y, z]."""
    image = rng.normal(size=SHAPE).astype(np.float32)
    label = rng.integers(0, 3, SHAPE).astype(np.uint8)
    label[:4, :4] = 255
    nib.save(nib.Nifti1Image(image, affine), root / "a.nii")
    nib.save(nib.Nifti1Image(label, affine), root / "a_seg.nii")
    return image, label


def prepare(root: Path, plan: Plan | None) -> tuple[Store, CaseResult]:
    """Store the case of `write_pair` as preparation does."""
    raw = labeled_case("a", "a", root / "a.nii", root / "a_seg.nii")
    folder = root / "store"
    folder.mkdir(exist_ok=True)
    result = read_case(Folder(), raw, spec(plan), folder)
    assert result.error is None
    numbers = {root / "a_seg.nii": {0: 0, 1: 1, 2: 2, 255: 3}}
    number_label(result, ClassAssignment(spec(plan).classes, numbers))
    result = store_class_numbers(spec(plan), folder, result)
    cases = (case_info(result, root),)
    write_index(folder, Index(recipe=RECIPE, spec=spec(plan), cases=cases))
    return Store(folder), result


def normalized(image: np.ndarray) -> np.ndarray:
    return (image - image.mean()) / image.std()


def test_a_plan_that_changes_nothing(tmp_path, rng):
    _, label = write_pair(tmp_path, rng)
    without, _ = prepare(tmp_path, None)
    digests = dict(without.index.sha256)
    for plan in (Plan("native", "native"), Plan("LPS", (3.0, 1.0, 0.8))):
        store, _ = prepare(tmp_path, plan)
        assert store.index.sha256 == digests
        assert store.index.cases == without.index.cases
    assert store.cases["a"].native_shape is None
    np.testing.assert_array_equal(store.native_label("a").T[4:], label[4:])


def test_volumes_are_turned(tmp_path, rng):
    """As nibabel turns them; the label lies on the image, and its ignored voxels are class 3."""
    image, label = write_pair(tmp_path, rng)
    store, result = prepare(tmp_path, Plan("SRA", "native"))
    case = store.cases["a"]
    # Stored axes: z points to A, y to R, x to S.
    assert case.shape == (10, 12, 6)
    assert case.spacing_mm == pytest.approx((1.0, 0.8, 3.0))
    assert case.native_shape is None
    target = nib.orientations.axcodes2ornt("ARS")
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("LPS"), target)
    expected = nib.orientations.apply_orientation(normalized(image), turn)
    np.testing.assert_allclose(store.image("a")[0], expected, atol=1e-5)
    numbers = nib.orientations.apply_orientation(np.where(label == 255, 3, label), turn)
    np.testing.assert_array_equal(store.label("a"), numbers)
    np.testing.assert_array_equal(store.native_label("a"), numbers)
    assert result.class_sizes == tuple(np.bincount(label.ravel(), minlength=3)[:3])


def test_volumes_are_resampled(tmp_path, rng):
    """Sizes by hand: 6 × 3 / 2 = 9, 10 × 1 / 2 = 5, 12 × 0.8 / 2 = 4.8."""
    _, label = write_pair(tmp_path, rng)
    store, result = prepare(tmp_path, Plan("RAS", (2.0, 2.0, 2.0)))
    case = store.cases["a"]
    assert store.image("a").shape[1:] == store.label("a").shape == case.shape == (9, 5, 5)
    assert case.spacing_mm == pytest.approx((2.0, 2.0, 12 * 0.8 / 5))
    assert case.native_shape == (6, 10, 12)
    assert case.native_spacing_mm == pytest.approx((3.0, 1.0, 0.8))
    assert case.label_spacing_mm == case.native_spacing_mm

    native = np.where(label == 255, 3, label)[::-1, ::-1].T
    np.testing.assert_array_equal(store.native_label("a"), native)
    assert store.native_label("a").dtype == np.uint8
    assert result.class_sizes == tuple(np.bincount(label.ravel(), minlength=3)[:3])
    # Slices are 3.75 times as far apart as pixels are wide.
    np.testing.assert_array_equal(store.label("a"), resample_label(native, (9, 5, 5), 0))
    assert (store.label("a") == 3).any()
    assert (tmp_path / "store/native/a.npz").stat().st_size < native.size

    before = dict(store.index.sha256)
    again, _ = prepare(tmp_path, Plan("RAS", (2.0, 2.0, 2.0)))
    assert again.index.sha256 == before


def test_slices_keep_their_distance(tmp_path, rng):
    """With the spacing of slices alone, every slice is resampled for itself."""
    image, label = write_pair(tmp_path, rng)
    store, _ = prepare(tmp_path, Plan("LPS", (2.0, 2.0)))
    case = store.cases["a"]
    assert case.shape == (6, 5, 5)
    assert case.spacing_mm == pytest.approx((3.0, 2.0, 12 * 0.8 / 5))
    slices = normalized(image).T
    resampled = np.stack([resample_image(slice_[None], (5, 5), None)[0] for slice_ in slices])
    np.testing.assert_allclose(store.image("a")[0], resampled, atol=1e-5)
    numbers = np.where(label == 255, 3, label).T
    labels = np.stack([resample_label(slice_[None], (1, 5, 5), None)[0] for slice_ in numbers])
    np.testing.assert_array_equal(store.label("a"), labels)


def test_the_spacing_must_be_known_to_resample(rng):
    array = rng.normal(size=(1, 6, 10, 12))
    volume = Volume(array, None, array.shape[1:])  # as HDF5 and TIFF are read
    path = Path("b.h5")
    with pytest.raises(CrkdError, match=r"b\.h5 does not state its spacing.*--spacing"):
        Folder().finish(volume, path, spec(Plan("RAS", (2.0, 2.0, 2.0))))
    stored = Folder().finish(volume, path, spec(Plan("RAS", "native")))
    assert stored.array.shape == array.shape
    described = replace(volume, spacing_mm=(4.0, 2.0, 2.0))
    stored = Folder().finish(described, path, spec(Plan("RAS", (2.0, 2.0, 2.0))))
    assert (stored.array.shape, stored.native_size) == ((1, 12, 10, 12), (6, 10, 12))


def test_a_volume_that_would_be_too_large_is_refused(tmp_path, rng):
    write_pair(tmp_path, rng)
    raw = labeled_case("a", "a", tmp_path / "a.nii", None)
    result = read_case(Folder(), raw, spec(Plan("RAS", (2.0, 1e-4, 1e-4))), None)
    assert "a.nii does not fit into memory: resampled to 2 × 0.0001 × 0.0001 mm" in str(
        result.error
    )
