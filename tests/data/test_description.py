"""Descriptions: read strictly, nnU-Net's alike, and printed so that they can be read again."""

import json
import os
from pathlib import Path

import pytest

from crkd_cli.data.description import Channel, Description, read_description, to_yaml
from crkd_cli.errors import CrkdError, UsageError

FULL = """\
channels: [{name: portal venous, modality: CT}]
classes: {background: 0, liver: 1, tumor: [2, 3]}
ignore: 255
images: "scans/{name}/*.nii.gz"
labels: {liver: "{name}_liver.png", tumor: "{name}_tumor*.png"}
patients: "{patient}_*"
spacing: [3, 0.8, 0.8]
"""


@pytest.fixture
def read(tmp_path):
    """read("classes: {liver: 1}") returns the description."""

    def write_and_read(text: str, name: str = "dataset.yaml") -> Description:
        file: Path = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return read_description(file)

    return write_and_read


def test_every_key(read):
    description = read(FULL)
    assert description.channels == (Channel(name="portal venous", modality="CT"),)
    assert description.classes == {"liver": 1, "tumor": (2, 3)}
    assert (description.ignore, description.spacing) == (255, (3.0, 0.8, 0.8))
    assert description.label_patterns["tumor"] == "{name}_tumor*.png"
    assert read("") == Description()


@pytest.mark.parametrize(
    "text", [FULL, "labels: '*{name}'", "classes: {'a: b, {c}': -7, Łódź: 4000000000}", ""]
)
def test_what_is_printed_can_be_read(read, text):
    description = read(text)
    printed = to_yaml(description)
    assert read(printed) == description
    assert all(len(line) <= 79 for line in printed.splitlines())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clases: {liver: 1}", "unknown key clases; did you mean classes?"),
        ("channels: [{nam: x}]", "unknown key channels[0].nam; did you mean channels[0].name?"),
        (
            "channels: [{modality: XR}]",
            "channels[0].modality is 'XR'; choose from MR, CT, RGB, gray",
        ),
        ("classes: {liver: one}", "classes.liver is 'one', neither a number nor a color in quotes"),
        ("classes: {liver: 1.5}", "classes[...]: expected a whole number or text or a list"),
        ("classes:\n  liver: #ff0000", "classes.liver has no value; give one, such as 1 or '#ff0"),
        ("classes: {a: '#ff0'}", "classes.a is '#ff0', neither a number nor a color"),
        ("classes: {a: '#ff0000', b: 2}", "classes.b is a number, but other values are colors"),
        ("classes: {a: '#ab12cd', b: '#AB12CD'}", "the value #ab12cd belongs to a and b"),
        ("classes: {a: '#000000'}", "classes.a is #000000, the background"),
        ("classes: {a: '#ff0000'}\nignore: 3", "ignore is a number, but other values are colors"),
        ("classes: {a: 1}\nignore: '#ff0000'", "ignore is a color, but other values are numbers"),
        ("ignore: '#ff0000'", "ignore is a color, so list the classes with their colors, too"),
        ("classes: {a: 1, b: [1, 2]}", "the value 1 belongs to a and b"),
        ("classes: {a: 0}", "classes.a is 0, the background"),
        ("classes: {a: 255}\nignore: 255", "classes.a is 255, the value of ignore"),
        ("classes: {a: []}", "classes.a has no value"),
        ("labels: masks/*.png", "labels: 'masks/*.png' lacks {name}"),
        ("labels: {background: '{name}.png'}", "the background needs no files"),
        ("labels: '{nam}.png'", "labels: {nam} is unknown; did you mean 'name'?"),
        ("images: '/data/{name}.png'", "must be relative to the folder"),
        ("images: '../{name}.png'", "must be relative to the folder"),
        ("images: '{name}/{name}.png'", "contains {name} more than once"),
        ("patients: ../who.csv", "patients: '../who.csv' must be relative to the folder"),
        ("patients: '*_x'", "patients: '*_x' lacks {patient}"),
        ("spacing: [1, 0, 1]", "spacing[1]: expected a number"),
        ("spacing: [1]", "spacing has 1 numbers; give one per axis"),
        ("- a\n- b", "is not a description; expected lines such as classes: {liver: 1}"),
        ("classes: {", "is not valid YAML"),
        ("images: 2024-13-45\nlabels: 5", "labels: expected text"),
        ("[" * 2000, "is not valid YAML"),
    ],
)
def test_mistakes_are_one_line_with_the_key(read, text, message):
    with pytest.raises(UsageError) as error:
        read(text)
    line = str(error.value)
    assert message in line
    assert "dataset.yaml" in line
    assert "\n" not in line


def test_numbers_may_be_text(read):
    description = read("classes: {a: '1', b: [2, '3'], background: '0'}\nignore: '255'")
    assert description.classes == {"a": 1, "b": (2, 3)}
    assert description.ignore == 255


def test_colors_stand_for_values_in_their_order(read):
    description = read(
        "classes: {background: '#101010', b: ['#ff0000', '#FF00ff'], a: '#00ff00'}\n"
        "ignore: '#ffffff'"
    )
    assert description.class_values == {"b": 1, "a": 2}
    assert description.ignored_value == 3
    assert description.colors == {
        0x000000: 0,
        0x101010: 0,
        0xFF0000: 1,
        0xFF00FF: 1,
        0x00FF00: 2,
        0xFFFFFF: 3,
    }


def test_nnunet(read):
    tree = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "kidney": [1, 3], "cyst": 2, "ignore": 4},
        "numTraining": 3,
        "file_ending": ".nii.gz",
        "regions_class_order": [1, 2],
    }
    description = read(json.dumps(tree), "dataset.json")
    assert description == Description(
        channels=(Channel(name="CT", modality="CT"),),
        classes={"kidney": (1, 3), "cyst": 2},
        ignore=4,
    )


def test_nnunet_of_before(read):
    tree = {"modality": {"0": "T2"}, "labels": {"0": "background", "1": "PZ", "2": "TZ"}}
    description = read(json.dumps(tree), "dataset.json")
    assert description.channels == (Channel(name="T2"),)
    assert description.classes == {"PZ": 1, "TZ": 2}


def test_nnunet_colors_are_one_channel(read):
    tree = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "road": 1}}
    assert read(json.dumps(tree), "dataset.json").channels == (Channel(modality="RGB"),)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"images": [], "annotations": []}, "dataset.json is not in nnU-Net's format"),
        (
            {"modality": {"0": "MR"}, "labels": {"0": "background", "1": "a", "2": "a"}},
            "two labels are called 'a'",
        ),
        (
            {"channel_names": {"0": "MR"}, "labels": {"whole": [1, 2], "core": 2}},
            "the value 2 belongs to whole and core",
        ),
    ],
)
def test_mistakes_in_nnunet_files(read, tree, message):
    with pytest.raises(CrkdError, match=message):
        read(json.dumps(tree), "dataset.json")


@pytest.mark.parametrize("name", ["dataset.yaml", "dataset.json"])
def test_files_that_cannot_be_read_to_their_end(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(CrkdError, match=f"{name} is a pipe or device, not a regular file"):
        read_description(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).write_text(" " * 5_000_000)
    with pytest.raises(UsageError, match="longer than 4 MB"):
        read_description(tmp_path / name)
