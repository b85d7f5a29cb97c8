"""Images of several channels: every form gives the same store, and faults are named."""

import json
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Picture

from crkd_cli.data.channels import images_to_predict
from crkd_cli.data.description import Channel, Description
from crkd_cli.data.sources.folder import Folder
from crkd_cli.data.store import ChannelInfo, DatasetSpec
from crkd_cli.errors import UsageError
from tests.data.helpers import make_files

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


@pytest.mark.parametrize("form", ["vectors", "four axes", "arrays of h5", "NRRD"])
def test_one_file_is_stored_like_a_file_per_channel(form, write, prepared, tmp_path):
    """Bit for bit."""
    expected = {case: np.array(prepared("x", write("numbered")).image(case)) for case in "ab"}
    (tmp_path / "raw").rename(tmp_path / "numbered")
    store = prepared("y", write(form))
    for case, array in expected.items():
        assert store.image(case).tobytes() == array.tobytes()


def test_gray_pictures_per_channel(tmp_path, rng, prepared):
    (tmp_path / "raw/images").mkdir(parents=True)
    pictures = rng.integers(0, 200, (2, 12, 9), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        Picture.fromarray(picture).save(tmp_path / f"raw/images/a_{number:04d}.png")
    (tmp_path / "raw/labels").mkdir()
    Picture.fromarray(np.eye(12, 9, dtype=np.uint8)).save(tmp_path / "raw/labels/a.png")
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


FOUND = {
    "numbered": (
        ["imagesTr/a_0000.png", "imagesTr/a_0001.png", "labelsTr/a.png"],
        "",
        {"a": ["imagesTr/a_0000.png", "imagesTr/a_0001.png"]},
    ),
    "numbered cases with numbered labels": (
        [f"{part}/a_{n:04d}.png" for part in ("images", "labels") for n in (0, 1)],
        "",
        {"a_0000": ["images/a_0000.png"], "a_0001": ["images/a_0001.png"]},
    ),
    "one channel is chosen": (
        ["imagesTr/a_0000.png", "imagesTr/a_0001.png", "labelsTr/a.png"],
        'images: "imagesTr/{name}_0001.png"',
        {"a": ["imagesTr/a_0001.png"]},
    ),
    "the order of the description": (
        ["t1/a.png", "t2/a.png", "labels/a.png"],
        'images: {T2: "t2/{name}.png", T1: "t1/{name}.png"}',
        {"a": ["t2/a.png", "t1/a.png"]},
    ),
    "the order of the channels": (
        ["t1/a.png", "t2/a.png", "labels/a.png"],
        'images: {T2: "t2/{name}.png", T1: "t1/{name}.png"}\nchannels: [{name: T1}, {name: T2}]',
        {"a": ["t1/a.png", "t2/a.png"]},
    ),
    "folders of cases": (
        ["images/a/x_0000.png", "images/a/x_0001.png", "labels/a/x.png"],
        "",
        {"a": ["images/a/x_0000.png", "images/a/x_0001.png"]},
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_which_files_are_channels_of_a_case(name, tmp_path):
    files, description, expected = FOUND[name]
    root = make_files(tmp_path, *files)
    if description:
        (root / "dataset.yaml").write_text(description)
    source = Folder()
    cases = source.find(root)
    assert {
        case.id: [image.path.relative_to(root).as_posix() for image in case.images]
        for case in cases
    } == expected
    assert all(case.labels for case in cases)
    assert not source.files.refused


A = ["imagesTr/a_0000.png", "imagesTr/a_0001.png", "labelsTr/a.png"]
NAMED_2 = 'images: {T1: "{name}_t1*.png", T2: "{name}_t2.png"}\nlabels: "{name}_seg.png"'
FAULTS = {
    "a missing channel": (
        [*A, "imagesTr/b_0000.png"],
        "",
        "the case b lacks channel 1: there is no imagesTr/b_0001.png",
    ),
    "a missing first channel": (
        [*A, "imagesTr/b_0001.png", "labelsTr/b.png"],
        "",
        "the case b lacks channel 0: there is no imagesTr/b_0000.png",
    ),
    "a missing channel of the description": (
        A,
        "channels: [{name: x}, {name: y}, {name: z}]",
        "the case a lacks channel z: there is no imagesTr/a_0002.png",
    ),
    "an additional channel": (
        [
            *A,
            "imagesTr/b_0000.png",
            "imagesTr/b_0001.png",
            "imagesTr/b_0002.png",
            "labelsTr/b.png",
            "imagesTr/c_0000.png",
            "imagesTr/c_0001.png",
        ],
        "",
        "the case b has an additional channel, imagesTr/b_0002.png; the dataset has 2 channels",
    ),
    "a channel that is not described": (
        A,
        "channels: [{name: x}]",
        "the case a has an additional channel, imagesTr/a_0001.png; the dataset has 1 channel (x)",
    ),
    "two files of a channel": (
        [*A, "imagesTr/a_0001.jpg"],
        "",
        "the case a has several files of channel 1: imagesTr/a_0001.jpg and",
    ),
    "a file of two channels": (
        ["a_t1.png", "a_t2.png", "a_t1_t2.png", "a_seg.png"],
        NAMED_2,
        "a_t1_t2.png matches the patterns of several channels: T1, T2",
    ),
    "a missing file": (
        ["a_t1.png", "a_t2.png", "a_seg.png", "b_t1.png"],
        NAMED_2,
        "the case b lacks channel T2: there is no b_t2.png",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name, tmp_path):
    files, description, message = FAULTS[name]
    root = make_files(tmp_path, *files)
    if description:
        (root / "dataset.yaml").write_text(description)
    source = Folder()
    source.find(root)
    (reason,) = source.files.refused.values()
    assert message in reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("channels: [{name: a}, {name: a}]", "2 are called 'a'; give each its own name"),
        ("channels: [{modality: MR}, {modality: MR}]", "2 are called 'image'"),
        (
            'images: {a: "{name}_a.png", b: "{name}_b.png"}\nchannels: [{name: a}, {name: c}]',
            "images has patterns for a, b, but the channels are a, c",
        ),
        ('images: {a: "a.png", b: "{name}_b.png"}', "'a.png' lacks {name}"),
    ],
)
def test_descriptions_that_contradict_themselves(text, message, tmp_path):
    (make_files(tmp_path, "a.png") / "dataset.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        Folder().find(tmp_path)


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


def spec(**description: object) -> DatasetSpec:
    channels = tuple(ChannelInfo("MR", "zscore", name) for name in (T1, FLAIR))
    described = Description(channels=tuple(Channel(x.name) for x in channels), **description)
    return DatasetSpec(
        name="m", source="folder", classes=(), channels=channels, dims=3, description=described
    )


BY_FOLDER = {T1: "train/*/{name}/t1_*.nii", FLAIR: "train/*/{name}/flair.nii"}
BY_NUMBER = {T1: "imagesTr/{name}_0000.nii", FLAIR: "imagesTr/{name}_0001.nii"}


@pytest.mark.parametrize(
    ("images", "files", "expected", "others"),
    [
        (
            BY_FOLDER,
            ["p/t1_x.nii", "p/flair.nii", "p/brain.nii"],
            {("", "p"): ["p/t1_x.nii", "p/flair.nii"]},
            ["p/brain.nii"],
        ),
        (
            BY_NUMBER,
            ["x/a_0001.nii", "x/a_0000.nii", "a_0000.nii", "a_0001.nii"],
            {
                ("x", "a"): ["x/a_0000.nii", "x/a_0001.nii"],
                ("", "a"): ["a_0000.nii", "a_0001.nii"],
            },
            [],
        ),
        (
            "{name}.nii",
            ["a.nii", "b_0000.nii"],
            {("", "a"): ["a.nii"], ("", "b_0000"): ["b_0000.nii"]},
            [],
        ),
        (BY_FOLDER, ["a.nii"], {("", "a"): ["a.nii"]}, []),
        (None, ["a_0000.nii", "a_0001.nii"], {("", "a"): ["a_0000.nii", "a_0001.nii"]}, []),
    ],
)
def test_images_to_predict(images, files, expected, others, tmp_path):
    paths = [tmp_path / name for name in files]
    found, unused = images_to_predict(paths, tmp_path, spec(images=images))
    names = {
        image.key: [file.path.relative_to(tmp_path).as_posix() for file in image.files]
        for image in found
    }
    assert names == expected
    assert unused == [tmp_path / name for name in others]
    assert not any(image.problem for image in found)


def test_a_missing_channel_to_predict(tmp_path):
    paths = [tmp_path / name for name in ("p/t1_x.nii", "q/t1_x.nii", "q/flair.nii")]
    found, _ = images_to_predict(paths, tmp_path, spec(images=BY_FOLDER))
    problems = {image.id: image.problem for image in found}
    assert problems == {
        "p": f"the case p lacks channel FLAIR: there is no {tmp_path}/p/flair.nii; add it, or "
        "remove the case",
        "q": "",
    }
