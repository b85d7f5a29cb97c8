"""Patterns of file names."""

import pytest

from crkd_cli.data import patterns


@pytest.mark.parametrize(
    ("pattern", "text", "names"),
    [
        ("images/{name}.png", "images/a.b.png", ["a.b"]),
        ("{name}_mask*.png", "x_mask_1.png", ["x"]),
        ("{name}_mask*.png", "x_mask_1_mask.png", ["x", "x_mask_1"]),  # the shortest, the longest
        ("*/{name}.png", "a/b/c.png", []),  # neither * nor a name contains /
        ("{name}.png", ".png", []),
        ("im[a]ges/{name}.p?g", "im[a]ges/x.p?g", ["x"]),  # only * is special
        ("{name}.png", "Müller.png", ["Müller"]),
        ("Mu\u0308ller_{name}.png", "Müller_1.png", ["1"]),  # in both forms of Unicode
    ],
)
def test_names_in_a_file_name(pattern, text, names):
    assert list(patterns.match(pattern, text, "name")) == names
    assert patterns.matches(pattern, text) == bool(names)


@pytest.mark.parametrize(
    ("entries", "pattern"),
    [
        ([("images/a.png", "a"), ("images/b.png", "b")], "images/{name}.png"),
        ([("images/a.png", "a"), ("images/b.jpg", "b")], "images/{name}.*"),
        ([("m/a_mask.png", "a"), ("m/b_mask_2.png", "b")], "m/{name}_mask*.png"),
        ([("c0/t1.nii", "c0"), ("c1/t1.nii", "c1")], "{name}/t1.nii"),
        ([("x/a.png", "a"), ("y/b.png", "b")], "*/{name}.png"),
        ([("x/1.png", "x_1"), ("x/2.png", "x_2")], None),
        ([], None),
    ],
)
def test_the_pattern_of_files(entries, pattern):
    assert patterns.common_template(entries) == pattern
    for file, name in entries if pattern else ():
        assert name in patterns.match(pattern, file, "name")


def test_the_folder_of_a_pattern():
    assert patterns.folder("a/b/{name}.png") == "a/b/"
    assert patterns.folder("a/b*/x.png") == "a/"
    assert patterns.folder("{name}.png") == ""
