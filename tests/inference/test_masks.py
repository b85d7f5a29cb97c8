"""Masks contain the values of the label files, or class numbers on request."""

from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from crkd_cli.config import Frame
from crkd_cli.data.description import Description
from crkd_cli.data.store import ClassInfo, DatasetSpec
from crkd_cli.errors import UsageError
from crkd_cli.inference.case_predictor import PredictOptions
from tests.inference.test_predict import expected, flat, gray8, run


def with_values(spec: DatasetSpec, *values: int) -> DatasetSpec:
    """Give the background and the foreground these values in label files."""
    classes = [
        ClassInfo(name=info.name, values=(value, 255))
        for info, value in zip(spec.classes, values, strict=True)
    ]
    return msgspec.structs.replace(spec, classes=tuple(classes))


@pytest.mark.parametrize(
    ("name", "value", "dtype"),
    [
        pytest.param("a.png", 3, np.uint8, marks=pytest.mark.slow),
        ("a.png", 1000, np.uint16),
        ("a.tif", 70_000, np.int32),
        pytest.param("a.tif", -1, np.int32, marks=pytest.mark.slow),
        ("a.nii.gz", -7, np.int8),
        pytest.param("a.nii", 40_000, np.uint16, marks=pytest.mark.slow),
        pytest.param("a.nrrd", 70_000, np.uint32, marks=pytest.mark.slow),
        pytest.param("a.mha", -70_000, np.int32, marks=pytest.mark.slow),
        ("a.mha", 2**40, np.uint64),
    ],
)
def test_masks_contain_the_values_of_the_label_files(
    scans, make_checkpoint, rng, name, value, dtype
):
    sitk.WriteImage(
        sitk.GetImageFromArray(rng.integers(0, 255, (20, 24)).astype(np.uint8)), scans / name
    )
    checkpoint = make_checkpoint(with_values(flat(), 0, value), Frame(resize=(32, 32)))
    result = run(scans, checkpoint)
    assert (result.failures, result.classes) == ([], ((0, "background"), (value, "disc")))
    mask = read_mask(result.folder / name)
    assert mask.dtype == dtype
    numbers = expected(scans / name, checkpoint)
    assert 0 < numbers.mean() < 1
    assert np.array_equal(mask, np.where(numbers == 1, value, 0))

    options = PredictOptions(class_numbers=True, overwrite=True)
    assert run(scans, checkpoint, options=options).classes == ((0, "background"), (1, "disc"))
    mask = read_mask(result.folder / name)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, numbers)


def read_mask(file: Path) -> np.ndarray:
    if file.suffix in (".png", ".tif"):
        return np.asarray(Image.open(file))
    return sitk.GetArrayFromImage(sitk.ReadImage(file))


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("a.png", (0, 70_000), "values from 0 to 65535, but disc is 70000"),
        ("a.jpg", (-1, 1), "a.png can contain values from 0 to 65535, but background is -1"),
        ("a.tif", (0, 2**31), "values from -2147483648 to 2147483647, but disc is 2147483648"),
    ],
)
def test_values_that_a_format_cannot_hold_are_refused_first(
    scans, make_checkpoint, rng, name, values, reason
):
    gray8(scans / name, rng)
    h5 = scans / "fits.h5"
    with h5py.File(h5, "w") as file:
        file["image"] = rng.random((20, 20))
    checkpoint = make_checkpoint(with_values(flat(), *values), Frame(resize=(32, 32)))
    with pytest.raises(UsageError, match=f"{reason}; give --class-numbers, or images in another"):
        run(scans, checkpoint)
    assert not any(path.is_file() for path in scans.with_name("scans-masks").glob("[!.]*"))
    assert run(scans, checkpoint, options=PredictOptions(class_numbers=True)).written == 2
    result = run(h5, checkpoint, options=PredictOptions(overwrite=True))
    with h5py.File(result.folder / h5.name) as file:
        assert set(np.unique(file["label"][()]).tolist()) == set(values)


@pytest.mark.parametrize(
    ("pattern", "is_refused"),
    [("imagesTr/{name}_0000.png", True), ("images/{name}.png", False), (None, False)],
)
def test_further_channels_of_a_case_are_refused(
    scans, make_checkpoint, rng, pattern: str | None, is_refused: bool
) -> None:
    """Numbers are channels only if the model was trained on files that end in _0000."""
    for name in ("a_0000.png", "a_0001.png", "b_0000.png"):
        gray8(scans / name, rng)
    spec = msgspec.structs.replace(flat(), description=Description(images=pattern))
    checkpoint = make_checkpoint(spec, Frame(resize=(32, 32)))
    if not is_refused:
        assert run(scans, checkpoint).written == 3
        return
    (failure,) = run(scans, checkpoint).failures
    assert "the case a has an additional channel" in failure
    assert "a_0001.png; the dataset has 1 channel" in failure
    (scans / "a_0001.png").unlink()
    assert run(scans, checkpoint).failures == []
