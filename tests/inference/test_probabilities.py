"""Files of class probabilities: float16, with the geometry of the image."""

import msgspec
import nibabel
import numpy as np
import pytest
from PIL import Image

from crkd_cli.cli.bars import progress
from crkd_cli.config import Frame
from crkd_cli.data.store import ClassInfo
from crkd_cli.inference.case_predictor import PredictOptions
from crkd_cli.inference.predict import predict
from tests.inference.test_predict import SOLID, flat, gray8, quiet

OPTIONS = PredictOptions(overlays=True, probabilities=True)


def assert_labels(mask: np.ndarray, probabilities: np.ndarray, values: np.ndarray) -> None:
    """Compare where rounding to float16 cannot change which class is the most probable."""
    certain = np.abs(probabilities[1].astype(float) - 0.5) > 0.0005
    labels = values[probabilities.argmax(0)]
    assert certain.mean() > 0.2
    assert np.array_equal(labels[certain], mask[certain])


def test_pictures(scans, make_checkpoint, rng):
    gray8(scans / "a.png", rng)
    checkpoint = make_checkpoint(flat(), Frame(resize=(32, 32)))
    out = predict(scans, [checkpoint], quiet, progress, options=OPTIONS).folder
    with np.load(out / "probabilities" / "a.npz", allow_pickle=False) as file:
        assert np.isnan(file["spacing"]).tolist() == [True, True]
        assert np.isnan(file["affine"]).all()
        assert (file["names"].tolist(), file["values"].tolist()) == (["background", "disc"], [0, 1])
        probabilities, values = file["probabilities"], file["values"]
    assert (probabilities.shape, probabilities.dtype) == ((2, 37, 53), np.float16)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-3)
    with Image.open(out / "a.png") as mask:
        assert_labels(np.asarray(mask), probabilities, values)
    with Image.open(out / "overlays" / "a.png") as picture:
        assert picture.mode == "RGB"


@pytest.mark.parametrize("z_last", [False, True])
def test_volumes_become_nifti_files_with_nibabel(scans, make_checkpoint, rng, z_last):
    """As docs/masks.md says, also if arrays of the dataset are x, y, z."""
    classes = (ClassInfo(name="background", values=(0,)), ClassInfo(name="ball", values=(7,)))
    spec = msgspec.structs.replace(SOLID, classes=classes, z_last=z_last)
    affine = np.array([[0, 0, 2.5, 10], [-1.5, 0, 0, 20], [0, 0.5, 0, -30], [0, 0, 0, 1]])
    image = rng.normal(100, 20, (9, 21, 34)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, affine), scans / "a.nii.gz")
    checkpoint = make_checkpoint(spec, Frame(patch=(16, 16, 16)))
    out = predict(scans, [checkpoint], quiet, progress, options=OPTIONS).folder
    with np.load(out / "probabilities" / "a.npz", allow_pickle=False) as file:
        assert file["spacing"] == pytest.approx((2.5, 0.5, 1.5))
        ball = np.float32(file["probabilities"][1])
        heat = nibabel.Nifti1Image(ball.T, file["affine"])
        values = file["values"]
    mask = nibabel.load(out / "a.nii.gz")
    np.testing.assert_allclose(heat.affine, mask.affine, atol=1e-6)
    maps = np.stack([1 - heat.get_fdata(), heat.get_fdata()])
    assert_labels(np.asarray(mask.dataobj), maps, values)
