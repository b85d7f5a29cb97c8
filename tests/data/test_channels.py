"""Which files are the channels of a case, and what is said about faults."""

import pytest

from crkd_cli.data.channels import images_to_predict
from crkd_cli.data.description import Channel, Description
from crkd_cli.data.sources.folder import Folder
from crkd_cli.data.store import ChannelInfo, DatasetSpec
from crkd_cli.errors import CrkdError, UsageError
from tests.data.helpers import make_files

T1, FLAIR = "T1", "FLAIR"


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


def test_a_pattern_without_a_file_is_wrong(tmp_path):
    root = make_files(tmp_path, "a_t1.png", "a_t2.png", "a_seg.png")
    (root / "dataset.yaml").write_text(NAMED_2.replace("_t2", "_T2"))
    with pytest.raises(CrkdError, match=r"the pattern images\.T2: '{name}_T2\.png'; correct it"):
        Folder().find(root)


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
