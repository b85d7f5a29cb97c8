"""Label pictures whose classes are colors."""

import pickle

import numpy as np
import pytest
from PIL import Image

from crkd_cli.data.raw.colors import ColorPictureError, join_color_errors
from crkd_cli.data.raw.formats import read_label
from crkd_cli.errors import CrkdError

RED, GREEN, WHITE = (255, 0, 0), (0, 128, 1), (255, 255, 255)
COLORS = {0x000000: 0, 0xFF0000: 1, 0x008001: 2, 0xFFFFFF: 3}
VALUES = np.array([[0, 1, 1], [2, 3, 0]])


def picture():
    return np.array([(0, 0, 0), RED, GREEN, WHITE], np.uint8)[VALUES]


@pytest.mark.parametrize("kind", ["rgb.png", "alpha.png", "palette.png", "palette.gif", "x.tif"])
def test_colors_become_values(tmp_path, kind):
    image = Image.fromarray(picture())
    if kind == "alpha.png":
        image.putalpha(255)
    if kind.startswith("palette"):
        image = image.quantize(4)
        assert image.mode == "P"
    image.save(tmp_path / kind)
    np.testing.assert_array_equal(read_label(tmp_path / kind, colors=COLORS).array, VALUES)


def test_gray_values_are_colors_with_equal_channels(tmp_path):
    Image.fromarray(np.array([[0, 255, 255]], np.uint8)).save(tmp_path / "gray.png")
    assert read_label(tmp_path / "gray.png", colors=COLORS).array.tolist() == [[0, 3, 3]]


def test_other_colors_are_an_error(tmp_path, rng):
    other = picture()
    other[0, :2] = (1, 2, 3)
    other[1, 0] = (255, 0, 1)
    Image.fromarray(other).save(tmp_path / "other.png")
    message = (
        r"other\.png has colors that are not a class: #010203, #ff0001 \(3 pixels\); add them to "
        r"the classes in dataset\.yaml"
    )
    with pytest.raises(CrkdError, match=message):
        read_label(tmp_path / "other.png", colors=COLORS)

    Image.fromarray(rng.integers(1, 250, (40, 40, 3), np.uint8)).save(tmp_path / "smooth.png")
    with pytest.raises(CrkdError, match=r"and \d+ more .*; save it as PNG without smooth edges"):
        read_label(tmp_path / "smooth.png", colors=COLORS)

    Image.fromarray(np.array([[0, 3000]], np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(CrkdError, match=r"deep\.png is not a picture with colors of 8 bits"):
        read_label(tmp_path / "deep.png", colors=COLORS)


def test_colors_without_a_meaning_are_suggested_as_classes(tmp_path):
    errors = []
    for name, color in (("a", RED), ("b", GREEN), ("c", RED)):
        pixels = picture()[:1]
        pixels[pixels.any(-1)] = color
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        with pytest.raises(ColorPictureError, match="or list its colors in") as error:
            read_label(tmp_path / f"{name}.png")
        errors.append(pickle.loads(pickle.dumps(error.value)))  # as worker processes return it
    other = CrkdError("another")
    joint, *rest = join_color_errors([*errors, other])
    assert rest == [other]
    assert str(joint) == (
        "3 color pictures among the labels; if every color is a class, name the classes in "
        "dataset.yaml: classes: {class 1: '#008001', class 2: '#ff0000'}"
    )
    assert join_color_errors([other]) == [other]
    photographs = [ColorPictureError("many", range(k, k + 40)) for k in (1, 41)]
    assert join_color_errors(photographs) == photographs
