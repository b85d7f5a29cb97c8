"""Modalities: what looks like CT, and how CT is normalized."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from crkd_cli.cli.bars import progress
from crkd_cli.data.cases import ImageFile, RawCase
from crkd_cli.data.intensities import SAMPLES, decide_intensities, looks_like_ct
from crkd_cli.data.prepare import prepare
from crkd_cli.data.sources.folder import Folder
from crkd_cli.data.store import ChannelInfo, DatasetSpec, Store
from crkd_cli.errors import CrkdError
from tests.dicom import write_series

SHAPE = (12, 24, 20)  # x, y, z


def scan(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Air, a body of fat and organs with a bone, lungs and gas, in Hounsfield units."""
    rng = np.random.default_rng(seed)
    values = np.full(shape, -1000.0)
    values[2:10, 3:21] = -90
    values[3:9, 4:20] = 50
    values[4:8, 5:9] = -800
    values[5, 15, 2:8] = -1000
    values[6, 14] = 900
    return np.rint(values + rng.normal(0, 25, shape)).clip(-1024, 3071)


def organs(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """0 outside of the body, 1 and 2 in it, 9 at its edge."""
    label = np.zeros(shape, np.uint8)
    label[2:10, 3:21] = 9
    label[3:9, 10:20] = 1
    label[3:9, 14:20, 4:] = 2
    return label


def outside(values: np.ndarray, padding: float) -> np.ndarray:
    return np.where(np.arange(values.shape[2]) < 8, padding, values)


VOLUMES = {
    "CT": (scan(), True),
    "CT with padding": (outside(scan(), -3024), True),
    "CT with metal": (np.where(scan() > 900, 20_000, scan()), True),
    "resampled CT": (scan() + 0.37, True),
    "CT of soft tissue": (scan().clip(-160, 240), False),
    "CT from 0": (scan() + 1024, False),
    "MR": (np.abs(scan() + 1000), False),
    "normalized": ((scan() - scan().mean()) / scan().std(), False),
    "phase": (np.random.default_rng(0).uniform(-4096, 4095, SHAPE), False),
    "field map": (np.random.default_rng(0).normal(0, 400, SHAPE), False),
    "difference": (np.random.default_rng(0).normal(0, 200, SHAPE), False),
    "lungs": (scan()[3:9, 4:10], True),
    "abdomen with gas": (np.where(scan() < -900, -1000, scan().clip(-80, 300))[2:10, 3:21], True),
    "abdomen": (scan().clip(-80, 300)[2:10, 3:21], False),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes_that_look_like_ct(name: str) -> None:
    values, expected = VOLUMES[name]
    assert looks_like_ct(values) == expected


def save(root: Path, name: str, image: np.ndarray, label: np.ndarray | None = None) -> Path:
    for folder, array in (("images", image), ("labels", label)):
        if array is not None:
            (root / folder).mkdir(parents=True, exist_ok=True)
            dtype = np.uint8 if folder == "labels" else np.float32
            nib.save(nib.Nifti1Image(array.astype(dtype), np.eye(4)), root / folder / f"{name}.nii")
    return root


def decide(root: Path, reverse: bool = False):
    source = Folder()
    cases = source.find(root)
    spec = source.spec("mine", cases)
    cases = cases[::-1] if reverse else cases
    (channel,) = decide_intensities(source, cases, spec, progress).channels
    return channel, source.notes


def test_ct_is_normalized_by_all_values_of_the_labeled_foreground(tmp_path, prepared):
    """The ignored value, described background and unlabeled cases do not count."""
    scans = {name: scan(seed) for seed, name in enumerate("abc")}
    for name, values in scans.items():
        save(tmp_path / "raw", name, values, None if name == "c" else organs())
    (tmp_path / "raw/dataset.yaml").write_text("classes: {background: [0, 2], x: 1}\nignore: 9")
    store = prepared("mine", tmp_path / "raw")
    (channel,) = store.spec.channels
    assert (channel.modality, channel.intensity) == ("CT", "window")
    values = np.concatenate([scans[name][organs() == 1] for name in "ab"]).astype(np.float64)
    assert len(values) < 2 * SAMPLES
    window = channel.window
    assert [window.low, window.high] == np.percentile(values, [0.5, 99.5]).tolist()
    assert [window.mean, window.std] == pytest.approx([values.mean(), values.std()])
    for name in "ac":
        clipped = scans[name].clip(window.low, window.high)
        expected = (clipped - values.mean()) / values.std()
        np.testing.assert_allclose(store.image(name)[0].transpose(2, 1, 0), expected, atol=1e-5)
    (note,) = [note for note in store.index.notes if "looks like CT" in note]
    assert "channels: [{name: image, modality: MR}]" in note


def test_every_channel_has_its_own_modality_and_window(tmp_path):
    images = {"_0000": np.abs(scan(1)), "_0001": scan(2), "_0002": scan(3) / 2 - 500}
    for number, image in images.items():
        save(tmp_path, f"a{number}", image)
    save(tmp_path / "label", "a", scan(), organs())
    (tmp_path / "label/labels").rename(tmp_path / "labels")
    (tmp_path / "dataset.yaml").write_text(
        "channels: [{name: T1}, {name: low}, {name: high, modality: CT}]"
    )
    report = prepare("mine", Folder(), tmp_path, tmp_path / "store", progress)
    store = Store(tmp_path / "store")
    t1, low, high = store.spec.channels
    assert [info.modality for info in store.spec.channels] == ["MR", "CT", "CT"]
    assert t1.window is None
    for info, number in ((low, "_0001"), (high, "_0002")):
        assert info.window.mean == pytest.approx(images[number][organs() > 0].mean())
    assert store.image("a")[0].mean() == pytest.approx(0, abs=1e-5)
    lines = [line.partition(":")[0] for line in report.channels]
    assert lines == ["channel T1 (MR)", "channel low (CT)", "channel high (CT)"]
    smallest, largest = images["_0001"].min(), images["_0001"].max()
    assert f"values {smallest:.6g} to {largest:.6g}, clipped to" in report.channels[1]


def test_large_foregrounds_are_sampled_independently_of_the_order_of_cases(tmp_path):
    shape = (12, 24, 400)
    scans = [scan(0, shape), scan(1, shape) + 100]
    for name, values in zip("ab", scans, strict=True):
        save(tmp_path, name, values, organs(shape) > 0)
    window = decide(tmp_path)[0].window
    assert window == decide(tmp_path, reverse=True)[0].window
    values = np.concatenate([values[organs(shape) > 0] for values in scans])
    assert len(values) > 5 * SAMPLES
    expected = [*np.percentile(values, [0.5, 99.5]), values.mean(), values.std()]
    assert [window.low, window.high, window.mean, window.std] == pytest.approx(expected, rel=0.05)


def test_a_mask_per_class_is_foreground_wherever_it_is_not_0(tmp_path, prepared):
    save(tmp_path / "raw", "a", scan())
    for name, value in (("lung", 255), ("spleen", 1)):
        mask = (organs() == 2) if name == "spleen" else (scan() < -700) & (organs() != 2)
        save(tmp_path / "masks", f"a_mask_{name}", scan(), mask * value)
    (tmp_path / "masks/labels").rename(tmp_path / "raw/labels")
    store = prepared("mine", tmp_path / "raw")
    assert store.spec.class_names == ("background", "lung", "spleen")
    values = scan()[(organs() == 2) | (scan() < -700)]
    assert store.spec.channels[0].window.mean == pytest.approx(values.mean())


def test_the_majority_decides_and_contradictions_are_named(tmp_path):
    for name in "abc":
        save(tmp_path, name, np.abs(scan()) if name == "b" else scan(), organs())
    channel, notes = decide(tmp_path)
    assert channel.modality == "CT"
    assert any("of 3 images checked, these look different: b" in note for note in notes)
    (tmp_path / "dataset.yaml").write_text("channels: [{name: image, modality: MR}]")
    channel, notes = decide(tmp_path)
    assert (channel.modality, channel.intensity, notes) == ("MR", "zscore", [])


def test_the_tags_of_dicom_files_state_the_modality(tmp_path):
    images = []
    for tag in ("MR", "PT"):
        slices = write_series(tmp_path / tag, np.ones((3, 4, 5)), name=tag, tags={"Modality": tag})
        images.append(ImageFile(slices[0], tuple(slices)))
    info = ChannelInfo(modality="MR", intensity="zscore")
    for dims, expected in ((2, "minmax"), (3, "zscore")):
        spec = DatasetSpec("mine", "folder", (), (info, info), dims)
        case = RawCase("a", "a", tuple(images))
        first, second = decide_intensities(Folder(), [case], spec, progress).channels
        assert (first.modality, first.intensity) == ("MR", "zscore")
        assert (second.modality, second.intensity) == ("gray", expected)


def test_ct_without_labeled_foreground_is_an_error(tmp_path):
    save(tmp_path, "a", scan(), np.zeros(SHAPE))
    with pytest.raises(CrkdError, match="but no label contains an object"):
        decide(tmp_path)
    save(tmp_path, "a", scan(), np.zeros((3, 3, 3)))
    with pytest.raises(CrkdError, match="image and label must match"):
        decide(tmp_path)


def test_images_in_other_units_than_the_others_are_named(tmp_path):
    for name in "abc":
        save(tmp_path, name, scan() + 1024 if name == "b" else scan(), organs())

    def report():
        return prepare("mine", Folder(), tmp_path, tmp_path / "store", progress)

    assert any("Hounsfield units as the others: b" in finding.what for finding in report().findings)
    assert Store(tmp_path / "store").spec.channels[0].modality == "CT"
    save(tmp_path, "b", (scan() + 1024) / 4095)
    (error,) = report().errors
    assert error.what.startswith("images/b.nii has values from 0 to 0.")
    assert "CT images of this dataset are clipped to" in error.what


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda x: np.where(x > 0, 1e300, -1e300), "values that are too large"),
        (lambda x: x.astype(np.int64) + 2**55, "too close together"),
        (lambda x: np.where(organs() > 0, 7, x), "labeled foreground are 7; check whether"),
    ],
)
def test_described_ct_that_cannot_be_normalized_is_refused(tmp_path, values, message):
    save(tmp_path / "raw", "a", scan(), organs())
    image = nib.Nifti1Image(values(scan()), np.eye(4), dtype=values(scan()).dtype)
    nib.save(image, tmp_path / "raw/images/a.nii")
    (tmp_path / "raw/dataset.yaml").write_text("channels: [{modality: CT}]")
    report = prepare("mine", Folder(), tmp_path / "raw", tmp_path / "store", progress)
    errors = [error.what for error in report.errors] or [str(report.failure)]
    assert message in errors[0]
