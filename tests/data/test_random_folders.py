"""Folders of random names: every file has one place, and the printed description finds it again."""

import random
from pathlib import Path

import pytest

from crkd_cli.data.cases import RawCase
from crkd_cli.data.description import to_yaml
from crkd_cli.data.inventory import list_files
from crkd_cli.data.raw import formats
from crkd_cli.data.sources.folder import Folder
from crkd_cli.errors import CrkdError
from tests.data.helpers import make_files

STEMS = ("a", "b", "case_1", "case_2", "case_10", "frame", "x (1)", "Ä", "A", "heart")
ENDINGS = (
    *("", "_0000", "_0001", "_0002", "_0000_mask"),
    *("_mask", "_seg", "_gt", "-seg", "_label", "_mask_1", "_mask_2"),
    *("_mask_liver", "_mask_spleen", "_seg_liver", "_mask_final", "_liver"),
)
SUFFIXES = (".png", ".png", ".nii.gz", ".nii", ".nrrd", ".jpg", ".txt", ".db")
FOLDERS = (
    *("", "images/", "images/a/", "images/b/", "images/a/b/", "imagesTr/", "imagesTs/"),
    *("labels/", "labels/a/", "labels/liver/", "labels/spleen/", "masks/", "labelsTr/"),
    *("c0/", "c1/", "heart/", "set/images/", "set/labels/"),
)


def random_names(rng: random.Random) -> set[str]:
    """Draw a few names of few kinds, so that they have much in common."""
    kinds = [rng.sample(words, rng.randint(1, 4)) for words in (FOLDERS, STEMS, ENDINGS, SUFFIXES)]
    return {"".join(map(rng.choice, kinds)) for _ in range(rng.randint(1, 14))}


def label_paths(case: RawCase) -> list[Path]:
    return [label.path for label in case.labels]


@pytest.mark.slow
def test_random_folders(tmp_path):
    rng = random.Random(0)
    understood = 0
    for number in range(1000):
        root = make_files(tmp_path / str(number), *random_names(rng))
        source = Folder()
        try:
            cases = source.find(root)
        except CrkdError:  # nothing to pair
            continue
        used = {path for case in cases for path in (*case.image_files, *label_paths(case))}
        for file in list_files(root):
            if formats.suffix(file.path):
                places = [used, source.files.left_out, source.files.refused]
                count = sum(file.path in place for place in places)
                # Images with the same id are refused later; both list its label.
                duplicates = len({case.id for case in cases}) < len(cases)
                assert count == 1 or duplicates, file.name
        if not source.files.refused:
            understood += 1
            (root / "dataset.yaml").write_text(to_yaml(source.description), encoding="utf-8")
            assert Folder().find(root) == cases
    assert understood > 50
