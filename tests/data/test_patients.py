"""Patients by a part of the names, and by a table that names images in several ways."""

import os
from pathlib import Path

import pytest

from crkd_cli.data.cases import ImageFile, RawCase
from crkd_cli.data.patients import group_by_pattern, group_by_table
from crkd_cli.errors import CrkdError

ROOT = Path("set")


def cases(*images: str) -> list[RawCase]:
    ids = [image.removesuffix(".png").replace("/", "_") for image in images]
    return [
        RawCase(id, id, (ImageFile(ROOT / image),)) for id, image in zip(ids, images, strict=True)
    ]


def groups(grouped: list[RawCase]) -> list[str]:
    return [case.group for case in grouped]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{patient}-*", ["anna", "anna", "ben"]),
        ("{patient}", ["anna-1", "anna-2", "ben-1"]),
        ("*-{patient}", ["1", "2", "1"]),
    ],
)
def test_patients_are_part_of_the_names(pattern, expected):
    grouped = group_by_pattern(cases("anna-1.png", "anna-2.png", "ben-1.png"), ROOT, pattern)
    assert groups(grouped) == expected


def test_patients_are_part_of_the_paths():
    images = cases("anna/1.png", "ben/1.png")
    assert groups(group_by_pattern(images, ROOT, "{patient}/*.png")) == ["anna", "ben"]
    with pytest.raises(CrkdError, match=r"does not match 2 images in set: anna_1, ben_1; correct"):
        group_by_pattern(images, ROOT, "{patient}-*")


@pytest.mark.parametrize("names", [("a/1.png", "b/1.png"), ("a_1", "b_1"), ("a_1.png", "b_1.png")])
def test_a_table_names_images_by_path_or_case(names, tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("image,patient\n" + "".join(f"{name},p{name[0]}\n" for name in names))
    assert groups(group_by_table(cases("a/1.png", "b/1.png"), ROOT, table, [])) == ["pa", "pb"]


def test_a_name_of_two_images_is_not_enough(tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("image,patient\n1.png,anna\na/1.png,ben\n")
    with pytest.raises(CrkdError, match="lacks 1 image: b_1; add a line"):
        group_by_table(cases("a/1.png", "b/1.png"), ROOT, table, [])


def test_a_table_must_be_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "patients.csv")  # opening it would wait for ever
    with pytest.raises(CrkdError, match=r"patients\.csv is a pipe or device"):
        group_by_table(cases("a.png"), ROOT, tmp_path / "patients.csv", [])
