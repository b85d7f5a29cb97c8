"""What the values of label files mean, decided for all files of a dataset."""

from pathlib import Path

import pytest

from crkd_cli.data.classes import decide_classes
from crkd_cli.data.labels import LabelValues
from crkd_cli.errors import CrkdError

BLURRED = {0: 900, 3: 20, 130: 4, 250: 30, 255: 900}


def labels(*files, suffix=".png"):
    """Label files 0.png, 1.png … with these values (10 pixels each, or as counted)."""
    result = []
    for number, values in enumerate(files):
        counts = values if isinstance(values, dict) else dict.fromkeys(sorted(values), 10)
        result.append(LabelValues(Path(f"{number}{suffix}"), counts))
    return result


def masks(**files):
    """Masks of one class each: liver={0, 1} is liver.png."""
    return [
        LabelValues(Path(f"{name}.png"), dict.fromkeys(sorted(values), 10), name)
        for name, values in files.items()
    ]


def decided(files, stated=None, ignore=None):
    """Return the values of every class, the class numbers by file, and the notes."""
    assignment = decide_classes(files, stated, ignore)
    numbers = [dict(assignment.numbers[file.path]) for file in files]
    return [info.values for info in assignment.classes], numbers, " ".join(assignment.notes)


def test_masks_that_differ_in_their_value_are_one_class():
    values, numbers, notes = decided(labels({0, 1}, {0, 255}, {0, 1}, {0}))
    assert values == [(0,), (1, 255)]
    assert numbers == [{0: 0, 1: 1}, {0: 0, 255: 1}, {0: 0, 1: 1}, {0: 0}]
    assert "1 in 2 files (0.png, 2.png); 255 in 1 file (1.png); all are read as one class" in notes


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([{0, 255}, {0, 255}, {0, 1}], (255, 1)),  # the most frequent first
        ([{0, 2}, {0, 1}], (1, 2)),  # ties: the smaller
        ([{0, 7}, {0}, {7, 0}], (7,)),
        ([{0, -1}, {0, 2**40}, {3, 0}], (-1, 3, 2**40)),
    ],
)
def test_the_first_value_is_that_of_predicted_masks(files, expected):
    values, _, _ = decided(labels(*files))
    assert values == [(0,), expected]


@pytest.mark.parametrize(
    "files",
    [
        [{0, 1}, {0, 255}, {0, 1, 2}],
        [{0, 1, 2}, {0, 128, 255}, {0, 1, 2}],
        [{0, 1, 2}] * 3 + [{0, 4}],
        [{1, 2}, {10, 20}],
    ],
)
def test_files_that_disagree_are_listed_by_value(files):
    with pytest.raises(CrkdError, match="do not agree on their values") as caught:
        decided(labels(*files))
    for value in set().union(*files) - {0}:
        holders = [f"{n}.png" for n, values in enumerate(files) if value in values]
        assert f"{value} in {len(holders)} file" in str(caught.value)
        assert holders[0] in str(caught.value)
    assert "classes: {organ: [1, " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([{0, 1, 3}, {0, 3, 9}, {0, 9}, {0}], [(0,), (1,), (3,), (9,)]),  # linked by 3
        ([{0, 1, 2}, {0, 3}], [(0,), (1,), (2,), (3,)]),  # without a gap
        ([{0, 312_782_546, 2**32}], [(0,), (312_782_546,), (2**32,)]),
        ([{-1, 0, 2**64 - 1}], [(0,), (-1,), (2**64 - 1,)]),
        ([{1, 2}, {1, 2}], [(0,), (1,), (2,)]),  # no background at all
    ],
)
def test_values_that_occur_together_are_classes(files, expected):
    values, numbers, _ = decided(labels(*files))
    assert values == expected
    assert all(
        values[number] == (value,) for of_file in numbers for value, number in of_file.items()
    )


def test_names_contain_the_value():
    assignment = decide_classes(labels({0, 3, 5}), None, None)
    assert [info.name for info in assignment.classes] == ["background", "class 3", "class 5"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([{0}, {0}], "no label contains more than background"),
        ([{255}, {255}], r"each has a single value \(255 in 2 files"),
        ([{1}, {2}], r"single value \(1 in 1 file \(0.png\); 2 in 1 file"),
        ([{0}, {255}], "single value"),
        ([range(66)], "65 different values besides 0"),
    ],
)
def test_labels_that_show_nothing(files, message):
    with pytest.raises(CrkdError, match=message):
        decided(labels(*files))


def test_labels_without_background_are_noted():
    assert "labels without background (0): 1 (1.png)" in decided(labels({0, 1}, {1}))[2]
    notes = decided(labels({1, 2}, {2}))[2]
    assert "no label has background (0); if one of the values is the background, state it" in notes
    assert "classes: {background: 1, …}" in notes
    stated = {"background": 1, "organ": 2}
    values, numbers, notes = decided(labels({1, 2}, {1}), stated)
    assert (values, numbers, notes) == ([(0, 1), (2,)], [{1: 0, 2: 1}, {1: 0}], "")


def test_the_background_cannot_be_ignored_if_it_is_all_that_surrounds_a_class():
    with pytest.raises(CrkdError, match=r"without the ignored value 0, .* one class and no backg"):
        decided(labels({0, 1}, {0, 1}), ignore=0)
    stated = {"background": 1, "organ": 2}
    values, numbers, _ = decided(labels({0, 1, 2}, {1}), stated, ignore=0)
    assert (values, numbers) == ([(0, 1), (2,)], [{0: 2, 1: 0, 2: 1}, {1: 0}])


def test_ignored_values():
    values, numbers, notes = decided(labels({0, 1, 255}, {0, 1}), ignore=255)
    assert values == [(0,), (1,)]
    assert numbers == [{0: 0, 1: 1, 255: 2}, {0: 0, 1: 1}]
    assert "ignored pixels or voxels (value 255): 10 in 1 of 2 labels" in notes
    # Files that agree but for the ignored value.
    assert decided(labels({0, 1, 9}, {0, 9}), ignore=9)[0] == [(0,), (1,)]
    assert "no label has the value to ignore, 7" in decided(labels({0, 1}), ignore=7)[2]
    with pytest.raises(CrkdError, match="no label contains more than background"):
        decided(labels({0, 255}), ignore=255)


@pytest.mark.parametrize(
    ("values", "hint"), [({0, 1, 255}, 255), ({-1, 0, 2}, -1), ({0, 200, 255}, None)]
)
def test_values_that_usually_mark_unclear_pixels_are_noted(values, hint):
    notes = decided(labels(values))[2]
    assert ("add --ignore" in notes) == (hint is not None)
    assert hint is None or f"--ignore {hint}" in notes


def test_stated_classes():
    stated = {"tumor": (2, 3), "liver": 1, "cyst": 9}
    values, numbers, notes = decided(labels({0, 1}, {0, 2, 3}), stated)
    assert values == [(0,), (2, 3), (1,), (9,)]
    assert numbers == [{0: 0, 1: 2}, {0: 0, 2: 1, 3: 1}]
    assert "classes that are in no label: cyst (9)" in notes
    # What is an error without them.
    assert decided(labels({0, 1}, {0, 255}, {0, 1, 2}), {"a": (1, 255), "b": 2})[1][1] == {
        0: 0,
        255: 1,
    }
    # As many as there are.
    many = {f"region {value}": value for value in range(1, 400)}
    assert len(decided(labels(range(400)), many)[0]) == 400


@pytest.mark.parametrize("background", [7, (0, 7), (7, 8)])
def test_the_background_may_have_other_values_than_0(background):
    stated = {"background": background, "organ": 1}
    values, numbers, _ = decided(labels({0, 1, 7}, {1, 7}), stated)
    assert values[0][:2] == (0, 7)
    assert values[1:] == [(1,)]
    assert numbers == [{0: 0, 1: 1, 7: 0}, {1: 1, 7: 0}]


def test_values_that_are_not_stated_are_listed():
    message = (
        r"not a class: 4 in 2 files \(0.png, 1.png\); 7 in 1 file \(1.png\); the description has "
        r"the classes background \(0\), liver \(1\)"
    )
    with pytest.raises(CrkdError, match=message):
        decided(labels({0, 1, 4}, {0, 4, 7}), {"liver": 1})


def test_blurred_masks_are_masks_of_255():
    assert decided(labels(BLURRED, {0: 100}, suffix=".jpg"))[0] == [(0,), (255,)]
    assert decided(labels(BLURRED, suffix=".jpg"), {"polyp": 255})[1][0][130] == 1
    # A mask of 0 and 1 among them is not empty.
    values, numbers, notes = decided(labels(BLURRED, BLURRED, suffix=".jpg") + labels({0, 1}))
    assert values == [(0,), (255, 1)]
    assert numbers[2] == {0: 0, 1: 1}
    assert "read as one class" in notes
    # Compression leaves traces in an empty mask.
    values, numbers, notes = decided(labels(BLURRED, {0: 90, 2: 10}, suffix=".jpg"))
    assert (values, numbers[1]) == ([(0,), (255,)], {0: 0, 2: 0})
    assert "read as empty masks (no value above 32): 1 (1.jpg)" in notes


def test_gray_edges_are_not_classes():
    """Masks saved as JPG, then as PNG, have about 16 values; most pixels are 0 or 255."""
    edges = {1: 30, 2: 20, 5: 1, 250: 2, 253: 20, 254: 30}
    mask = {0: 9000, **edges, 255: 900}
    for stated in (None, {"polyp": 255}):
        values, numbers, notes = decided(labels(mask, {0: 90, 255: 10}, {0: 90}), stated)
        assert values == [(0,), (255,)]
        assert numbers[0] == {value: int(value >= 128) for value in mask}
        assert "gray edges, read as masks of 0 and 255" in notes
        assert "1 (0.png)" in notes
    # Two classes, and two values for what is not labeled.
    assert len(decided(labels({0: 9000, 1: 300, 2: 200, 254: 100, 255: 900}))[0]) == 5
    # Not near both: one class is rare.
    assert len(decided(labels({0: 9000, 1: 30, 2: 20, 255: 900}))[0]) == 4


@pytest.mark.parametrize("stated", [None, {"a": 1, "b": 2, "c": 3}])
def test_compressed_label_maps_are_refused(stated):
    files = labels({0, 1}, {0: 500, 1: 9, 2: 80, 3: 7}, suffix=".jpg")
    with pytest.raises(CrkdError, match=r"1\.jpg has 3 values besides 0, but compression changes"):
        decided(files, stated)


def test_small_objects_of_many_classes_are_not_a_blurred_mask():
    counts = {0: 100_000} | dict.fromkeys(range(1, 251), 3)
    with pytest.raises(CrkdError, match="250 different values"):
        decided(labels(counts))
    many = {f"region {value}": value for value in range(1, 251)}
    assert len(decided(labels(counts), many)[0]) == 251


def test_masks_of_one_class_each():
    values, numbers, _ = decided(masks(liver={0, 255}, heart={0, 1}, lung={0}))
    assert values == [(0,), (1,), (2,), (3,)]  # heart, liver, lung
    assert numbers == [{0: 0, 255: 2}, {0: 0, 1: 1}, {0: 0}]
    values, numbers, _ = decided(masks(liver={0, 255}, heart={0, 1}), {"liver": 7, "heart": 5})
    assert values == [(0,), (7,), (5,)]
    assert numbers == [{0: 0, 255: 1}, {0: 0, 1: 2}]
    assert decided(masks(liver={0, 1, 9}, heart={0, 1}), ignore=9)[1][0] == {0: 0, 1: 2, 9: 3}


@pytest.mark.parametrize(
    ("files", "stated", "message"),
    [
        (
            masks(liver={0, 1, 2}),
            None,
            "liver.png is a mask of liver, but has several values: 1, 2",
        ),
        (masks(liver={0, 1}) + labels({0, 1}), None, r"but not 1 \(0.png\)"),
        (masks(liver={0, 1}), {"heart": 1}, "liver.png is a mask of liver, which is not a class"),
    ],
)
def test_masks_that_contradict_their_classes(files, stated, message):
    with pytest.raises(CrkdError, match=message):
        decided(files, stated)
