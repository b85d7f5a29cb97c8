"""Images in memory are predicted like files."""

import nibabel
import numpy as np
import pytest
from PIL import Image

from crkd_cli.config import Frame
from crkd_cli.data.plan import Plan
from crkd_cli.data.store import ChannelInfo, DatasetSpec, numbered_classes
from crkd_cli.errors import UsageError
from crkd_cli.inference.model import load_model

MR = ChannelInfo(modality="MR", intensity="zscore")
RGB = ChannelInfo(modality="RGB", intensity="uint8")
RESAMPLED = Plan("RAS", (2.0, 1.5, 1.0))


def spec_of(dims: int, channel: ChannelInfo, **settings: object) -> DatasetSpec:
    classes = numbered_classes(("background", "ball"))
    facts = {"name": "toy", "source": "folder", "classes": classes, "channels": (channel,)}
    return DatasetSpec(dims=dims, **{**facts, **settings})


@pytest.mark.parametrize(
    ("spec", "frame", "shape", "spacing"),
    [
        (
            spec_of(3, MR, plan=RESAMPLED),
            Frame(patch=(16, 16, 16)),
            3,
            (1, 2, 3),
        ),
        (spec_of(3, MR, source="la", z_last=True), Frame(patch=(16, 32, 16)), 3, (1, 2, 3)),
        (spec_of(2, RGB, stored_size=(32, 48)), Frame(resize=(32, 48)), 2, None),
    ],
    ids=["resampled", "z last", "color"],
)
def test_arrays_are_predicted_like_files(
    spec, frame, shape, spacing, make_checkpoint, cli, scans, rng
):
    checkpoint = make_checkpoint(spec, frame)
    if shape == 3:
        image = rng.uniform(0, 100, (20, 24, 30)).astype(np.float32)  # z, y, x
        affine = np.diag([*spacing[::-1], 1.0])
        nibabel.save(nibabel.Nifti1Image(image.T, affine), scans / "a.nii")
    else:
        image = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)  # y, x, RGB
        Image.fromarray(image).save(scans / "a.png")
    result = cli("predict", scans, "--checkpoint", checkpoint, "--probabilities")
    assert result.exit_code == 0, result.stderr
    with np.load(scans.with_name("scans-masks") / "probabilities" / "a.npz") as file:
        saved = file["probabilities"]
    model = load_model(checkpoint, device="cpu")
    assert model.classes == ("background", "ball")
    probabilities = model.probabilities(image, spacing)
    np.testing.assert_array_equal(saved, probabilities.astype(np.float16))
    label = model.predict(image, spacing)
    np.testing.assert_array_equal(label, probabilities.argmax(0))
    assert set(np.unique(label)) == {0, 1}


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((8, 8), (1, 1, 1), r"the image has shape \[8, 8\]; the model needs \[1 channels, z, y, x"),
        ((2, 8, 8, 8), (1, 1, 1), r"shape \[2, 8, 8, 8\]"),
        ((8, 8, 8), None, "the model resamples volumes; give the spacing"),
        ((8, 8, 8), (1, 1), "spacing has 2 values; the image has 3 axes"),
    ],
)
def test_arrays_that_do_not_fit(shape, spacing, message, make_checkpoint):
    spec = spec_of(3, MR, plan=Plan("RAS", (1.0, 1.0, 1.0)))
    model = load_model(make_checkpoint(spec, Frame(patch=(16, 16, 16))), device="cpu")
    with pytest.raises(UsageError, match=message):
        model.predict(np.zeros(shape), spacing)
