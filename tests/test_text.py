"""Names as text: nothing reaches a screen or a spreadsheet that could act there."""

import csv
import io

import pytest

from crkd_cli.text import csv_cell, csv_text, format_duration, group_similar, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("patient001", "patient001"),
        ("[/] [red]x", "[/] [red]x"),
        ("\x1b[2Jx", r"\x1b[2Jx"),
        ("\x9b31mx", r"\x9b31mx"),  # the one-character form of the same
        ("a\nerror: b", r"a\nerror: b"),
        ("a\r\tb\0", r"a\r\tb\x00"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("a\u2066b\u200bc\ufeff", r"a\u2066b\u200bc\ufeff"),
        ("line\u2028break\x85", r"line\u2028break\x85"),
        ("caf\udce9", r"caf\udce9"),  # the byte 0xe9 of a Latin-1 file name
        ("Tag\U000e0041", r"Tag\U000e0041"),
        ("Müller 脳 e\u0301 ±", "Müller 脳 e\u0301 ±"),
        (r"back\slash", r"back\slash"),
        (17, "17"),
    ],
)
def test_a_name_is_shown_without_effect_on_the_screen(name, shown):
    assert printable(name) == shown
    assert printable(name).isprintable()


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("'=1", "''=1"),
        ("''-", "'''-"),
        ("'quoted'", "'quoted'"),
        ("patient-1", "patient-1"),
        ("", ""),
        ("'", "'"),
        ('a,b\n"c"', 'a,b\n"c"'),
    ],
)
def test_a_csv_cell_is_no_formula_and_reads_back(text, cell):
    assert csv_cell(text) == cell
    file = io.StringIO(newline="")
    csv.writer(file).writerow([csv_cell(text), csv_cell(-1.5)])
    file.seek(0)
    read, number = next(csv.reader(file))
    assert csv_text(read) == text
    assert number == "-1.5"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (59, "59 s"),
        (59.5, "1 min"),
        (61, "2 min"),
        (3540, "59 min"),
        (3541, "1 h"),
        (4800, "1 h 20 min"),
        (36000, "10 h"),
        (36001, "11 h"),
        (270000, "75 h"),
    ],
)
def test_durations_are_rounded_up(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_messages_that_differ_in_names_and_numbers_are_similar():
    lines = [
        "labels/a.png has shape (30, 20)",
        "labels/b.png is empty",
        r"labels\c.png has shape (3, 20)",
        "heart004 is empty",
        "labels/d.png is constant",
    ]
    assert group_similar(lines, text=str) == [
        [lines[0], lines[2]],
        [lines[1], lines[3]],
        [lines[4]],
    ]
