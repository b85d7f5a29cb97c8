"""The cases in a folder or file to predict, and the names of their masks."""

from pathlib import Path

import pytest

from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError
from crkd_cli.inference.cases import find_cases
from tests.conftest import FLAT
from tests.data.helpers import make_files


def find(source: Path, out: Path, spec: DatasetSpec = FLAT) -> tuple[dict[str, str], list[str]]:
    """Return the first image of every mask, relative to `source`, and the notices."""
    lines: list[str] = []
    cases = find_cases(source, out, spec, lines.append)
    masks = {case.mask.as_posix(): case.image.relative_to(source).as_posix() for case in cases}
    assert len(masks) == len(cases)
    return masks, lines


def test_masks_and_text_beside_images_are_not_predicted(tmp_path):
    make_files(tmp_path, "a.png", "b.JPG", "a_mask.png", "b_gt.png", "about.txt", "masks/a.png")
    masks, notes = find(tmp_path, tmp_path / "masks")
    assert masks == {"a.png": "a.png", "b.png": "b.JPG"}
    assert notes == ["note: left out (a mask by its name): a_mask.png, b_gt.png"]


def test_subfolders_are_searched_if_there_is_no_image_in_the_folder(tmp_path, monkeypatch):
    make_files(tmp_path, "c1/t1.nii.gz", "c1/t1_seg.nii.gz", "c2/t1.nii.gz", "out/t1.nii.gz")
    masks, _ = find(tmp_path, tmp_path / "out")
    assert masks == {"c1/t1.nii.gz": "c1/t1.nii.gz", "c2/t1.nii.gz": "c2/t1.nii.gz"}
    monkeypatch.chdir(tmp_path)
    assert len(find(Path(), Path("out"))[0]) == 2
    assert len(find(Path("c1"), Path())[0]) == 1  # the masks go to the folder above
    make_files(tmp_path, "d.nii")
    masks, notes = find(tmp_path, tmp_path / "out")
    assert masks == {"d.nii": "d.nii"}
    assert notes[0].startswith("note: left out (in a subfolder beside images): c1/t1.nii.gz")


def test_labels_of_a_dataset_are_not_predicted(tmp_path):
    make_files(tmp_path, "imagesTr/a.png", "imagesTs/b.png", "labelsTr/a.png", "labelsTs/b.png")
    masks, notes = find(tmp_path, tmp_path / "out")
    assert sorted(masks) == ["imagesTr/a.png", "imagesTs/b.png"]
    assert notes == ["note: left out (in a folder of labels): labelsTr/a.png, labelsTs/b.png"]


@pytest.mark.parametrize("base", ["", "images/"])
def test_predicted_masks_beside_their_images_are_not_predicted(base, tmp_path):
    images = [f"{case}/t1.nii" for case in ("p1", "p2-masks")]
    make_files(tmp_path / base, *images, "p1-masks/t1.nii", "p1-masks/t1_gt.nii", "p1/t1_gt.nii")
    masks, _ = find(tmp_path / base, tmp_path / "out")
    assert sorted(masks) == images


def test_a_folder_without_images(tmp_path):
    make_files(tmp_path, "about.txt", "p1/about.txt")
    with pytest.raises(CrkdError, match="contains no images, nor do its subfolders"):
        find(tmp_path, tmp_path / "out")
