"""Images of several channels are stored alike, whatever their form."""

import json
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Picture

from crkd_cli.errors import UsageError

T1, FLAIR = "T1", "FLAIR"
NAMED = "channels: [{name: T1}, {name: FLAIR}]\n"
PATTERNS = 'images: {{T1: "{}", FLAIR: "{}"}}\n'
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def nifti(path: Path, array: np.ndarray, intent: str | None = None) -> None:
    """Write [*S] or [C, *S], z first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = array.T
    if intent == "5D":
        axes = axes[:, :, :, None]
    image = nib.Nifti1Image(axes, AFFINE)
    if intent is not None:
        image.header.set_intent("vector")
    nib.save(image, path)


def itk(path: Path, channels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.moveaxis(channels, 0, -1), isVector=True)
    image.SetSpacing((1.0, 1.0, 2.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # RAS, as that of the NIfTI files
    sitk.WriteImage(image, str(path))


def numbered(root: Path, case: str, channels: np.ndarray) -> None:
    for number, channel in enumerate(channels):
        nifti(root / f"imagesTr/{case}_{number:04d}.nii.gz", channel)


def named(template: str):
    def write(root: Path, case: str, channels: np.ndarray) -> None:
        for name, channel in zip(("t1", "flair"), channels, strict=True):
            nifti(root / template.format(case=case, channel=name), channel)

    return write


def several_arrays(root: Path, case: str, channels: np.ndarray) -> None:
    with h5py.File(root / f"images/{case}.h5", "w") as file:
        for name, channel in zip((T1, FLAIR), channels, strict=True):
            file[name] = channel


def one_array(root: Path, case: str, channels: np.ndarray) -> None:
    with h5py.File(root / f"images/{case}.h5", "w") as file:
        file["image"] = channels


JSON = json.dumps({"channel_names": {"1": FLAIR, "0": T1}, "labels": {"background": 0, "tumor": 1}})
OLD_JSON = json.dumps(
    {"modality": {"0": T1, "1": FLAIR}, "labels": {"0": "background", "1": "tumor"}}
)
# Per form: how a case is written, and the description.
FORMS = {
    "numbered": (numbered, {}),
    "numbered, described by nnU-Net": (numbered, {"dataset.json": JSON}),
    "named": (
        named("images/{case}_{channel}.nii.gz"),
        {"dataset.yaml": PATTERNS.format("images/{name}_t1.nii.gz", "images/{name}_flair.nii.gz")},
    ),
    "a folder per case": (
        named("images/{case}/{channel}_x.nii.gz"),
        {"dataset.yaml": PATTERNS.format("images/{name}/t1*", "images/{name}/flair*")},
    ),
    "vectors": (lambda r, c, x: nifti(r / f"images/{c}.nii", x, "5D"), {}),
    "vectors of four axes": (lambda r, c, x: nifti(r / f"images/{c}.nii.gz", x, "4D"), {}),
    "four axes": (lambda r, c, x: nifti(r / f"images/{c}.nii.gz", x), {"dataset.yaml": NAMED}),
    "four axes, described as in the Decathlon": (
        lambda r, c, x: nifti(r / f"imagesTr/{c}.nii.gz", x),
        {"dataset.json": OLD_JSON},
    ),
    "NRRD": (lambda r, c, x: itk(r / f"images/{c}.nrrd", x), {"dataset.yaml": NAMED}),
    "MetaImage": (lambda r, c, x: itk(r / f"images/{c}.mha", x), {}),
    "arrays of h5": (several_arrays, {"dataset.yaml": NAMED}),
    "an array of h5": (one_array, {"dataset.yaml": NAMED}),
}


@pytest.fixture
def cases() -> dict[str, np.ndarray]:
    """The channels [C, *S] of two cases, of very different values."""
    generator = np.random.default_rng(1)
    scale = np.array([1, 300], np.float32)[:, None, None, None]
    return {case: scale * generator.normal(4, 1, (2, 8, 7, 6)).astype(np.float32) for case in "ab"}


@pytest.fixture
def write(tmp_path: Path, cases):
    """write("vectors") writes case a with a label, and b."""

    def make(form: str) -> Path:
        root = tmp_path / "raw"
        (root / "images").mkdir(parents=True, exist_ok=True)
        write_case, descriptions = FORMS[form]
        for case, channels in cases.items():
            write_case(root, case, channels)
        nifti(root / "labels/a.nii.gz", (cases["a"][0] > 4).astype(np.uint8))
        for name, text in descriptions.items():
            (root / name).write_text(text)
        return root

    return make


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_store(form, write, prepared, cases):
    store = prepared("mine", write(form))
    assert (store.spec.channel_count, store.spec.dims) == (2, 3)
    names = (T1, FLAIR) if FORMS[form][1] else ("channel 0", "channel 1")
    assert store.spec.channel_names == names
    for case, channels in cases.items():
        for channel, stored in zip(channels, store.image(case), strict=True):
            mean, std = (float(f(channel, dtype=np.float64)) for f in (np.mean, np.std))
            expected = (channel - mean) / std
            np.testing.assert_allclose(stored, expected, atol=1e-5)
    np.testing.assert_array_equal(store.label("a"), cases["a"][0] > 4)


@pytest.mark.parametrize("form", ["vectors", "arrays of h5"])
def test_one_file_is_stored_like_a_file_per_channel(form, write, prepared, tmp_path):
    """Bit for bit."""
    expected = {case: np.array(prepared("x", write("numbered")).image(case)) for case in "ab"}
    (tmp_path / "raw").rename(tmp_path / "numbered")
    store = prepared("y", write(form))
    for case, array in expected.items():
        assert store.image(case).tobytes() == array.tobytes()


def test_labels_beside_the_channels_of_an_h5_file(tmp_path, rng, prepared):
    (tmp_path / "images").mkdir()
    label = rng.integers(0, 2, (4, 5, 6)).astype(np.uint8)
    with h5py.File(tmp_path / "images/a.h5", "w") as file:
        file["T1"], file["FLAIR"] = rng.random((2, 4, 5, 6))
        file["label"] = label
    (tmp_path / "dataset.yaml").write_text(NAMED)
    np.testing.assert_array_equal(prepared("mine", tmp_path).label("a"), label)


def test_gray_pictures_per_channel(tmp_path, rng, prepared):
    (tmp_path / "raw/images").mkdir(parents=True)
    pictures = rng.integers(0, 200, (2, 32, 32), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        Picture.fromarray(picture).save(tmp_path / f"raw/images/a_{number:04d}.png")
    (tmp_path / "raw/labels").mkdir()
    Picture.fromarray(np.eye(32, 32, dtype=np.uint8)).save(tmp_path / "raw/labels/a.png")
    store = prepared("mine", tmp_path / "raw")
    assert [channel.modality for channel in store.spec.channels] == ["gray", "gray"]
    low, high = (f(pictures, axis=(1, 2), keepdims=True).astype(float) for f in (np.min, np.max))
    np.testing.assert_allclose(store.image("a"), (pictures - low) / (high - low), atol=1e-6)


def test_colors_are_one_channel(tmp_path, rng, prepared):
    (tmp_path / "raw/images").mkdir(parents=True)
    (tmp_path / "raw/labels").mkdir()
    colors = sitk.GetImageFromArray(rng.integers(0, 9, (9, 8, 3), dtype=np.uint8), isVector=True)
    sitk.WriteImage(colors, str(tmp_path / "raw/images/a.mha"))
    sitk.WriteImage(
        sitk.GetImageFromArray(np.eye(9, 8, dtype=np.uint8)), str(tmp_path / "raw/labels/a.mha")
    )
    assert prepared("mine", tmp_path / "raw").spec.is_color
    (tmp_path / "raw/dataset.yaml").write_text("channels: [{modality: RGB}, {name: x}]")
    with pytest.raises(UsageError, match="RGB cannot be combined with other channels"):
        prepared("mine", tmp_path / "raw")


def damage(write, cases, form: str, channel: int, value: float) -> Path:
    cases["b"][channel] = value
    return write(form)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("named", r"b_flair\.nii\.gz \(channel FLAIR\) is constant"),
        ("vectors", r"b\.nii \(channel 1\) is constant"),
    ],
)
def test_a_constant_channel_is_named(form, message, write, prepared, cases):
    with pytest.raises(AssertionError, match=message):
        prepared("mine", damage(write, cases, form, 1, 7.0))


def test_a_channel_that_is_not_a_number_is_named(write, prepared, cases):
    with pytest.raises(AssertionError, match=r"\(channel T1\) contains 336 NaN"):
        prepared("mine", damage(write, cases, "arrays of h5", 0, np.nan))


def test_a_fourth_axis_must_be_described(write, prepared):
    root = write("four axes")
    (root / "dataset.yaml").write_text("channels: [{name: a}, {name: b}, {name: c}]")
    with pytest.raises(AssertionError, match="has a fourth axis of 2: the dataset has 3 channels"):
        prepared("mine", root)
    (root / "dataset.yaml").unlink()
    with pytest.raises(AssertionError, match=r"fourth axis of 2: if these are channels, list all"):
        prepared("mine", root)


def test_arrays_of_h5_that_are_not_described(write, prepared):
    root = write("arrays of h5")
    (root / "dataset.yaml").write_text("channels: [{name: T1}, {name: T2}]")
    with pytest.raises(AssertionError, match="has no array 'T2', only FLAIR, T1"):
        prepared("mine", root)
    (root / "dataset.yaml").unlink()
    message = r"list them in dataset.yaml: channels: \[{name: FLAIR}, {name: T1}\]"
    with pytest.raises(AssertionError, match=message):
        prepared("mine", root)


def test_channels_on_another_grid(write, prepared, cases):
    root = write("named")
    flair = nib.load(root / "images/b_flair.nii.gz")
    cropped = flair.slicer[1:, :, 1:]
    nib.save(cropped, root / "images/b_flair.nii.gz")
    store = prepared("mine", root)
    assert "1 of 2 cases have channels on different grids, which were" in str(store.index.notes)
    assert store.cases["b"].shape == (8, 7, 6)
    expected = np.full((8, 7, 6), cropped.get_fdata().min())
    expected[1:, :, 1:] = cases["b"][1, 1:, :, 1:]
    expected = (expected - expected.mean()) / expected.std()
    np.testing.assert_allclose(store.image("b")[1], expected, atol=1e-5)

    nifti(root / "labels/b.nii.gz", (cropped.get_fdata().T > 1200).astype(np.uint8))
    with pytest.raises(AssertionError, match="image and label must match"):  # that of T1
        prepared("mine", root)


def test_the_inventory_names_channels(cli, write, tmp_path):
    command = ["prepare-data", "mine", "--source", write("named"), "--check"]
    result = cli(*command, "--data-root", tmp_path / "data", "--json")
    assert result.exit_code == 0, result.stderr
    tree = json.loads(result.stdout)
    roles = {entry["file"]: entry["what"] for entry in tree["files"]}
    assert roles["images/b_t1.nii.gz"] == "image, channel T1"
    assert tree["cases"][0]["images"] == [
        {"file": "images/a_t1.nii.gz", "channel": "T1"},
        {"file": "images/a_flair.nii.gz", "channel": "FLAIR"},
    ]
    text = cli(*command, "--data-root", tmp_path / "data").stdout
    assert "1 image (channel FLAIR), 1 image (channel T1), 1 label" in text
