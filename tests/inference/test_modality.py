"""CT is refused by models for MR, and the reverse, unless the user wants it."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from crkd_cli.cli.bars import progress
from crkd_cli.config import Frame
from crkd_cli.data.cases import ImageFile
from crkd_cli.data.store import ChannelInfo, DatasetSpec, Window, numbered_classes
from crkd_cli.errors import CrkdError
from crkd_cli.inference.case_predictor import PredictOptions
from crkd_cli.inference.cases import Case
from crkd_cli.inference.modality import check_values
from crkd_cli.inference.predict import predict

CASE = Case((ImageFile(Path("a.nii")),), Path("a.nii"), "a.nii")
SHAPE = (8, 32, 32)


def channel(modality, low=None, name="image"):
    window = None if low is None else Window(low=low, high=300.0, mean=60.0, std=50.0)
    intensity = "zscore" if window is None else "window"
    return ChannelInfo(name=name, modality=modality, intensity=intensity, window=window)


def solid(*channels):
    return DatasetSpec(
        name="solid",
        source="folder",
        classes=numbered_classes(("background", "ball")),
        channels=channels,
        dims=3,
    )


MR = solid(channel("MR"))


@pytest.fixture
def ct(rng):
    """A third air, the rest soft tissue."""
    values = rng.normal(40, 30, SHAPE)
    values[:, :12] = rng.normal(-1000, 10, (8, 12, 32))
    return values.astype(np.float32)


@pytest.fixture
def mr(rng):
    return rng.gamma(2, 150, SHAPE).astype(np.float32)


def test_images_of_the_same_modality_are_accepted(ct, mr):
    check_values(CASE, mr[None], MR)
    check_values(CASE, ct[None], solid(channel("CT", -50)))


def test_ct_is_refused_by_a_model_for_mr(ct):
    with pytest.raises(
        CrkdError, match=r"^a.nii looks like CT .*trained on MR; .*--other-modality"
    ):
        check_values(CASE, ct[None], MR)


def test_values_that_are_not_hounsfield_units_are_refused_by_a_model_for_ct(ct, mr):
    for values in (mr, ct + 1024 + 40):
        with pytest.raises(CrkdError, match=r"^a.nii has values from .* trained on CT; "):
            check_values(CASE, values[None], solid(channel("CT", -50)))


def test_a_model_for_ct_whose_objects_have_no_negative_values_accepts_others(mr):
    check_values(CASE, mr[None], solid(channel("CT", 10)))


def test_the_channel_is_named(ct, mr):
    two = solid(channel("MR", name="T1"), channel("CT", -50, name="CT"))
    check_values(CASE, np.stack([mr, ct]), two)
    with pytest.raises(CrkdError, match=r"^a.nii \(channel T1\) looks like CT"):
        check_values(CASE, np.stack([ct, ct]), two)


@pytest.mark.slow
def test_other_images_are_predicted_and_the_option_predicts_all(scans, make_checkpoint, ct, mr):
    checkpoint = make_checkpoint(MR, Frame(patch=(16, 16, 16)))
    for name, values in (("ct", ct), ("mr", mr)):
        sitk.WriteImage(sitk.GetImageFromArray(values), str(scans / f"{name}.nii.gz"))
    result = predict(scans, [checkpoint], lambda line: None, progress)
    assert result.written == 1
    (failure,) = result.failures
    assert failure.startswith(f"{scans / 'ct.nii.gz'} looks like CT")
    options = PredictOptions(other_modality=True)
    result = predict(scans, [checkpoint], lambda line: None, progress, options=options)
    assert (result.written, result.skipped, result.failures) == (1, 1, [])
