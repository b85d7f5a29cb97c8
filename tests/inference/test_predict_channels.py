"""Prediction of images with several channels, in one file or one file per channel."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from crkd_cli.cli.bars import progress
from crkd_cli.config import Frame
from crkd_cli.data.description import Channel, Description
from crkd_cli.data.store import ChannelInfo, DatasetSpec, numbered_classes
from crkd_cli.inference.case_predictor import PredictOptions
from crkd_cli.inference.predict import predict

SHAPE = (9, 17, 20)
TWO = DatasetSpec(
    name="two",
    source="folder",
    classes=numbered_classes(("background", "ball")),
    channels=(
        ChannelInfo(name="T1", modality="MR", intensity="zscore"),
        ChannelInfo(name="FLAIR", modality="MR", intensity="zscore"),
    ),
    dims=3,
)
FRAME = Frame(patch=(16, 16, 16))


def run(source: Path, checkpoint: Path, **options):
    return predict(source, [checkpoint], lambda line: None, progress, **options)


@pytest.fixture
def checkpoint(make_checkpoint):
    return make_checkpoint(TWO, FRAME)


def write(file: Path, array: np.ndarray, vector: bool = False) -> None:
    file.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(array.astype(np.float32), isVector=vector)
    image.SetSpacing((0.7, 0.8, 2.0))
    sitk.WriteImage(image, str(file))


def names(folder: Path) -> list[str]:
    """Return the files in `folder` except label tables, which are there if there are masks."""
    files = [path for path in folder.rglob("*.*") if path.stem[:7] != "labels-"]
    return sorted(path.relative_to(folder).as_posix() for path in files)


@pytest.mark.slow
def test_numbered_files_are_predicted_like_a_file_with_all_channels(scans, checkpoint, rng):
    channels = rng.normal(100, 20, (2, *SHAPE))
    for number, channel in enumerate(channels):
        write(scans / f"anna_000{number}.nii.gz", channel)
    write(scans / "all.nrrd", np.moveaxis(channels, 0, -1), vector=True)
    options = PredictOptions(overlays=True, probabilities=True)
    result = run(scans, checkpoint, options=options)
    assert (result.written, result.failures) == (2, [])
    assert names(result.folder) == [
        "all.nrrd",
        "anna.nii.gz",
        "overlays/all.png",
        "overlays/anna.png",
        "probabilities/all.npz",
        "probabilities/anna.npz",
    ]
    masks = [sitk.ReadImage(str(result.folder / name)) for name in ("anna.nii.gz", "all.nrrd")]
    assert np.array_equal(*map(sitk.GetArrayFromImage, masks))
    assert masks[0].GetSpacing() == pytest.approx((0.7, 0.8, 2.0))
    with Image.open(result.folder / "overlays" / "anna.png") as picture:
        assert picture.mode == "RGB"


@pytest.mark.slow
def test_a_single_file_is_predicted_with_its_other_channels(scans, checkpoint, rng):
    for name in ("anna_0000", "anna_0001", "ben_0000", "ben_0001"):
        write(scans / f"{name}.nii.gz", rng.normal(100, 20, SHAPE))
    result = run(scans / "anna_0001.nii.gz", checkpoint)
    assert (result.written, names(result.folder)) == (1, ["anna.nii.gz"])
    mask = (result.folder / "anna.nii.gz").read_bytes()
    result = run(scans, checkpoint, options=PredictOptions(overwrite=True))
    assert (result.folder / "anna.nii.gz").read_bytes() == mask


@pytest.mark.slow
def test_the_description_of_the_model_says_which_file_is_which_channel(
    scans, make_checkpoint, checkpoint, rng
):
    """Whatever the order of its patterns."""
    for number, name in enumerate(("t1", "flair")):
        channel = rng.normal(100, 20, SHAPE)
        write(scans / "anna" / f"{name}.nii.gz", channel)
        write(scans.with_name("numbered") / f"anna_000{number}.nii.gz", channel)
    patterns = {"FLAIR": "images/{name}/flair.nii.gz", "T1": "images/{name}/t1.nii.gz"}
    description = Description(channels=(Channel("T1"), Channel("FLAIR")), images=patterns)
    expected = run(scans.with_name("numbered"), checkpoint)
    spec = msgspec.structs.replace(TWO, description=description)
    result = run(scans, make_checkpoint(spec, FRAME))
    assert (result.failures, names(result.folder)) == ([], ["anna.nii.gz"])
    masks = [(one.folder / "anna.nii.gz").read_bytes() for one in (result, expected)]
    assert masks[0] == masks[1]


def test_a_missing_channel_does_not_stop_the_others(scans, checkpoint, rng):
    for name in ("anna_0000", "anna_0001", "ben_0000", "carl_0001"):
        write(scans / f"{name}.nii.gz", rng.normal(100, 20, SHAPE))
    result = run(scans, checkpoint)
    assert result.written == 1
    ben, carl = result.failures
    assert "the case ben lacks channel FLAIR" in ben
    assert "the case carl lacks channel T1" in carl
    assert all("\n" not in failure for failure in result.failures)


@pytest.mark.slow
def test_a_file_with_another_number_of_channels_is_refused(scans, checkpoint, rng):
    write(scans / "one.nii.gz", rng.normal(100, 20, SHAPE))
    write(scans / "three.nrrd", rng.normal(100, 20, (*SHAPE, 3)), vector=True)
    result = run(scans, checkpoint)
    assert result.written == 0
    one, three = result.failures
    assert "one.nii.gz has 1 channel, but" in one
    assert "three.nrrd has 3 channels, but" in three


@pytest.mark.slow
def test_a_channel_on_another_grid_is_resampled_with_a_note(scans, checkpoint, rng):
    """The mask lies on the grid of the first channel."""
    for name in ("anna", "ben"):
        write(scans / f"{name}_0000.nii.gz", rng.normal(100, 20, SHAPE))
        write(scans / f"{name}_0001.nii.gz", rng.normal(100, 20, (5, 17, 20)))
    lines: list[str] = []
    result = predict(scans, [checkpoint], lines.append, progress)
    assert (result.written, result.failures) == (2, [])
    assert sitk.ReadImage(str(result.folder / "anna.nii.gz")).GetSize() == SHAPE[::-1]
    notes = [line for line in lines if line.startswith("note:")]
    assert notes == ["note: anna: channels are resampled to the grid of the first one"]
