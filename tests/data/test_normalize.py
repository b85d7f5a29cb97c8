"""Normalization: exact whatever the type of the image, or refused by name."""

from pathlib import Path

import numpy as np
import pytest

from crkd_cli.data.raw.formats import Volume
from crkd_cli.data.sources.folder import Folder
from crkd_cli.data.sources.la import La
from crkd_cli.data.store import ChannelInfo, DatasetSpec, Window
from crkd_cli.errors import CrkdError

STEPS = np.random.default_rng(0).integers(0, 50, (1, 4, 5, 6))


def finish(array, intensity, source=None, window=None):
    spec = DatasetSpec(
        name="mine",
        source="folder",
        classes=(),
        channels=(ChannelInfo(modality="MR", intensity=intensity, window=window),),
        dims=3,
    )
    volume = Volume(array, None, array.shape[1:])
    return (source or Folder()).finish(volume, Path("scan.nii"), spec).array


@pytest.mark.parametrize("intensity", ["minmax", "zscore"])
@pytest.mark.parametrize(
    "array",
    [
        STEPS.astype(np.uint8),
        (2**30 + STEPS).astype(np.int32),
        2**35 + STEPS,
        2**62 + STEPS * 2**50,
        (2**63 + STEPS.astype(np.uint64) * 2**50),
        (1e7 + STEPS).astype(np.float32),
        np.where(STEPS < 20, -3e38, 3e38).astype(np.float32),
        STEPS * 1e-130,
        STEPS * 1e130,
    ],
)
def test_every_type_is_normalized_exactly(array, intensity):
    values = [int(value) if array.dtype.kind in "iu" else float(value) for value in array.flat]
    lowest = min(values)
    shifted = np.array([value - lowest for value in values], np.float64).reshape(array.shape)
    if intensity == "minmax":
        expected = shifted / shifted.max()
    else:
        expected = (shifted - shifted.mean()) / shifted.std()
    np.testing.assert_allclose(finish(array, intensity), expected, atol=2e-6)


@pytest.mark.parametrize("intensity", ["minmax", "zscore"])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (2**62 + STEPS, "too close together"),
        (2**53 + STEPS, "too close together"),
        (np.uint64(2**64 - 1) - STEPS.astype(np.uint64), "too close together"),
        (1e20 + STEPS * 1e5, "too close together"),
        (STEPS * 1e-320, "too close together"),
        ((STEPS + 1) * 1e300, "too large"),
        (np.where(STEPS < 20, -1.7e308, 1.7e308), "too large"),
    ],
)
def test_values_that_cannot_be_normalized_are_refused_by_name(array, message, intensity):
    with pytest.raises(CrkdError, match=rf"scan\.nii has values that are {message}"):
        finish(array, intensity)


@pytest.mark.parametrize(
    "array",
    [
        (STEPS * 40 - 1000).astype(np.int16),
        (STEPS * 40 - 1000.5).astype(np.float32),
        np.where(STEPS < 9, -3024, STEPS * 40 - 1000),
        np.where(STEPS < 9, -1e300, STEPS * 40.0 - 1000),
        (STEPS * 5).astype(np.uint8),
    ],
)
def test_a_window_clips_and_scales_the_values_of_every_type(array):
    window = Window(low=-100.5, high=240.25, mean=40.125, std=63.5)
    expected = (array.astype(np.float64).clip(-100.5, 240.25) - 40.125) / 63.5
    normalized = finish(array, "window", window=window)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, expected, atol=2e-6)


def test_a_window_in_large_numbers_is_exact():
    """Beyond 2^24, float32 cannot represent every integer."""
    array = 2**30 + STEPS
    window = Window(low=2**30 + 5, high=2**30 + 40, mean=2**30 + 20, std=10)
    expected = ((array - 2**30).clip(5, 40) - 20) / 10
    np.testing.assert_allclose(finish(array, "window", window=window), expected, atol=2e-6)


@pytest.mark.parametrize("array", [STEPS / 50, STEPS / 10 - 2, STEPS + 500, STEPS - 800])
def test_values_beside_the_window_are_refused_by_name(array):
    window = Window(low=-100, high=240, mean=40, std=60)
    with pytest.raises(CrkdError, match=r"^scan\.nii has values from .* clipped to -100 … 240"):
        finish(array, "window", window=window)


def test_normalized_files_that_overflow_are_refused_by_name():
    """The h5 files of LA are stored as they are."""
    volume = Volume(STEPS * 1e300, None, STEPS.shape[1:])
    spec = La().spec("la", [])
    with pytest.raises(CrkdError, match=r"scan\.h5 has values that are too large"):
        La().finish(volume, Path("scan.h5"), spec)


class Greedy(Folder):
    """Needs more memory than any machine has."""

    def normalize(self, array, path, spec):
        return np.empty((2**50, *array.shape), np.float32)


def test_an_image_that_does_not_fit_into_memory_is_named():
    with pytest.raises(CrkdError, match=r"^scan\.nii does not fit into memory"):
        finish(STEPS, "zscore", Greedy())


def test_the_channel_that_cannot_be_normalized_is_named():
    channels = [ChannelInfo(name=name, modality="MR", intensity="zscore") for name in ("T1", "T2")]
    spec = DatasetSpec(name="mine", source="folder", classes=(), channels=tuple(channels), dims=3)
    array = np.concatenate([STEPS, 2**62 + STEPS])
    with pytest.raises(CrkdError, match=r"^scan\.nii \(channel T2\) has values that are too close"):
        Folder().finish(Volume(array, None, STEPS.shape[1:]), Path("scan.nii"), spec)
