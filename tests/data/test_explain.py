"""Errors about folders that are not understood, and the lines of a description that help."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from crkd_cli.data.sources.folder import Folder
from crkd_cli.errors import CrkdError
from tests.data.helpers import make_files

ERRORS = {
    "no folder of images": (
        ["scans/a.png", "x/a.jpg"],
        r'dataset.yaml: images: "scans/\*\.png"',
    ),
    "folders in a folder": (["train/images/a.png", "test/images/b.png"], "give .*/train to"),
    "an archive": (["set.zip", "readme.md"], "give the archive set.zip to --source"),
    "no image": (["images/a.xyz", "labels/a.png"], r"images contains no image in .*\(1 \.xyz\)"),
    "no label map": (
        ["images/a.png", "labels/a.xyz"],
        r"labels contains no label map in .*1 \.xyz",
    ),
    "no labels": (
        ["images/a.png"],
        r"has no labels/ \(or masks/, labelsTr/\), and no label beside",
    ),
    "other names": (
        ["images/a.png", "labels/q7.png"],
        r"\(q7 …; expected a\); rename them, or say",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_is_missing(name, tmp_path):
    files, message = ERRORS[name]
    with pytest.raises(CrkdError, match=message):
        Folder().find(make_files(tmp_path, *files))


def test_the_folder_of_images_is_not_the_dataset(tmp_path):
    make_files(tmp_path, "images/a.png", "labels/a.png")
    with pytest.raises(
        CrkdError, match=f"contains images only; give the folder above it, {tmp_path}"
    ):
        Folder().find(tmp_path / "images")


def test_the_suggested_line_finds_the_images(tmp_path):
    make_files(tmp_path, *(f"set/{case}/mri.h5" for case in ("a", "b")))
    with pytest.raises(CrkdError) as error:
        Folder().find(tmp_path)
    assert str(error.value).endswith('images: "set/{name}/mri.h5"')


@pytest.mark.parametrize(
    "files",
    [
        [f"{part}/{n}_{part}.png" for part in ("images", "labels") for n in (21, 22, 30)],
        [f"scans/I_{n}.png" for n in "ab"] + [f"Ground truth/I_{n}_segmentation.png" for n in "ab"],
        [f"scans/{n}.png" for n in "ab"] + [f"GT/{n}.png" for n in "abc"],
        ["images/a.tif", "images/b.png", "labels/heart_a.png", "labels/heart_b.png"],
        [f"p{n}/p{n}_{kind}.nii.gz" for n in (1, 2) for kind in ("flair", "t1", "seg")],
        [f"p{n}/{kind}.nii.gz" for n in (1, 2) for kind in ("flair", "t1", "tumor_seg")],
        [f"{n}_{kind}.nii.gz" for n in (1, 2) for kind in ("flair", "t1", "seg")],
        [f"images/{n}-{kind}.nii.gz" for n in (1, 2) for kind in ("flair", "t1")]
        + [f"labels/{n}.nii.gz" for n in (1, 2)],
        [f"images/p{n}/{kind}.nii.gz" for n in (1, 2) for kind in ("flair", "t1")]
        + [f"labels/p{n}.nii.gz" for n in (1, 2)],
        [f"images/p{n}/p{n}_{kind}.nii.gz" for n in (1, 2) for kind in ("flair", "t1")]
        + [f"labels/p{n}.nii.gz" for n in (1, 2)],
    ],
)
def test_the_suggested_lines_help(files, tmp_path):
    make_files(tmp_path, *files)
    with pytest.raises(CrkdError) as error:
        Folder().find(tmp_path)
    lines = str(error.value).partition("images: ")[2].split(" and ")
    (tmp_path / "dataset.yaml").write_text("images: " + "\n".join(lines), encoding="utf-8")
    cases = Folder().find(tmp_path)
    assert len(cases) >= 2
    assert all(len(case.labels) == 1 for case in cases)


def test_files_with_few_integers_are_labels(tmp_path, rng):
    """Files of a folder per case that no name tells apart."""
    for case in ("p1", "p2"):
        (tmp_path / case).mkdir()
        for name in ("ct", "pet"):
            save(tmp_path / case / f"{name}.nii", rng.normal(size=(9, 8, 7)).astype(np.float32))
        for name in ("liver", "spleen", "bodymask"):
            save(tmp_path / case / f"{name}.nii", rng.integers(0, 2, (9, 8, 7), dtype=np.uint8))
    channels = 'images: {ct: "{name}/ct.nii", pet: "{name}/pet.nii"}'
    classes = 'labels: {liver: "{name}/liver.nii", spleen: "{name}/spleen.nii"}'
    with pytest.raises(CrkdError) as error:
        Folder().find(tmp_path)
    assert str(error.value).endswith(f"add to dataset.yaml: {channels} and {classes}")

    for case in ("p1", "p2"):
        save(tmp_path / case / "tumor.nii", rng.integers(0, 5, (9, 8, 7)).astype(np.float32))
    with pytest.raises(CrkdError) as error:
        Folder().find(tmp_path)
    assert str(error.value).endswith(f'{channels} and labels: "{{name}}/tumor.nii"')


def save(path: Path, array: NDArray[Any]) -> None:
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
