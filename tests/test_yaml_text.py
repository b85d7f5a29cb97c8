"""YAML that anybody may have written: read as text, numbers, lists and sections, or refused."""

import re

import pytest
import yaml

from crkd_cli.yaml_text import MAX_BYTES, load_yaml, parse_yaml

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}]\n"
    for before, name in zip("abcdefghijklmnopqrstuvwxy", "bcdefghijklmnopqrstuvwxyz", strict=True)
)


@pytest.mark.parametrize(
    "text", ["a: 1\nb: [x, 2.5, true, null, '']", "{}", "", "- {a: {b: [1e+3, -.5, 0x1F, 1_000]}}"]
)
def test_what_is_read_is_what_yaml_reads(text):
    assert parse_yaml(text) == yaml.safe_load(text)


def test_a_date_is_a_name():
    assert parse_yaml("[2024-01-31, 2024-13-45]") == ["2024-01-31", "2024-13-45"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0x_", "'0x_' is not a valid int, line 1"),
        ("a: 1\nb: !!int x", "'x' is not a valid int, line 2"),
        ("!!int ''", "'' is not a valid int"),
        (r'a: "\uD800"', r"'\\ud800' is not a valid str, line 1"),
        (r'{"\uDFFFx": 1}', r"'\\udfffx' is not a valid str, line 1"),
        ("!!float x", "'x' is not a valid float"),
        ("!!bool x", "'x' is not a valid bool"),
        ("!!timestamp x", "could not determine a constructor"),
        ("!!binary aGVsbG8=", "could not determine a constructor"),
        ("!!python/name:os.system x", "could not determine a constructor"),
        ("!!set {a}", "could not determine a constructor"),
        ("9" * 5000, r"'9{30,}… is not a valid int"),
        ("0x" + "f" * 5000, "is not a valid int"),
        ("1" + ":59" * 3000, "is not a valid int"),
        ("1" + ":59" * 3000 + ".0", "is not a valid float"),
        ("[[[[", "expected the node content"),
        ("[" * 500, "nested too deeply"),
        ("- " * 500, "nested too deeply"),
        ("{a: " * 500, "nested too deeply"),
        ("a: 1\nb: 2\na: 3", "a occurs twice, line 3"),
        ("{1: 1, 1: 2}", "1 occurs twice"),
        ("? [a]\n: 1", "a key is not a plain word"),
        (LAUGHS, "aliases are not supported, line 2"),
        ("&a [*a]", "aliases are not supported"),
        ("a: &a {}\nb: {<<: *a}", "aliases are not supported"),
        ("a: \0", "#x0000"),
        ("a: \udce9", "#xdce9"),
        ("a: b: c", "mapping values are not allowed here, line 1"),
        ("\ta: 1", "cannot start any token"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("%YAML 9.9\n---\na", "incompatible"),
        ("#" * (MAX_BYTES + 1), "longer than 4 MB"),
    ],
    ids=range(32),
)
def test_everything_else_is_refused_in_one_short_line(text, problem):
    with pytest.raises(ValueError, match=problem) as error:
        parse_yaml(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 160


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"caf\xe9: 1", "not text in UTF-8, at byte 3"),
        ("a: 1".encode("utf-16"), "not text in UTF-8, at byte 0"),
        (b"#" * (MAX_BYTES + 1), "longer than 4 MB"),
    ],
)
def test_files_are_refused_likewise(tmp_path, content, problem):
    (tmp_path / "file.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(problem)):
        load_yaml(tmp_path / "file.yaml")


def test_an_endless_file_is_refused(tmp_path):
    (tmp_path / "file.yaml").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="longer than 4 MB"):
        load_yaml(tmp_path / "file.yaml")


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "file.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert load_yaml(tmp_path / "file.yaml") == {"a": 1}
