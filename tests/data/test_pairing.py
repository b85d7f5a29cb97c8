"""Images and their labels are paired by name, and no file is lost without a word."""

import os
import unicodedata
from pathlib import Path

import pytest

from crkd_cli.data.description import to_yaml
from crkd_cli.data.inventory import list_files
from crkd_cli.data.naming import similar_name
from crkd_cli.data.sources.folder import Folder
from tests.data.helpers import make_files


def find(root: Path) -> tuple[dict[str, list[str]], Folder]:
    """Return the files of every case, the image first and classes after a colon."""
    source = Folder()
    cases = {}
    for case in source.find(root):
        paths = [(case.image, None), *case.labels]
        cases[case.id] = [
            path.relative_to(root).as_posix() + (f":{name}" if name else "") for path, name in paths
        ]
    return cases, source


def names(root: Path, paths) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in paths)


CASES = {
    "equal names": (
        ["images/a.png", "images/b.jpg", "images/c.png", "labels/a.tif", "labels/b.png"],
        {
            "a": ["images/a.png", "labels/a.tif"],
            "b": ["images/b.jpg", "labels/b.png"],
            "c": ["images/c.png"],
        },
    ),
    "upper case": (
        ["Images/a.PNG", "Masks/a_Mask.PNG"],
        {"a": ["Images/a.PNG", "Masks/a_Mask.PNG"]},
    ),
    "numbered frames": (
        [f"{part}/frame_{n:04d}.png" for part in ("images", "labels") for n in range(3)],
        {
            f"frame_{n:04d}": [f"images/frame_{n:04d}.png", f"labels/frame_{n:04d}.png"]
            for n in range(3)
        },
    ),
    "folders of classes of images, all with labels": (
        [f"{kind}/{kind} ({n}){end}.png" for kind in "xy" for n in (1, 2) for end in ("", "_mask")],
        {
            f"{kind} ({n})": [f"{kind}/{kind} ({n}).png", f"{kind}/{kind} ({n})_mask.png"]
            for kind in "xy"
            for n in (1, 2)
        },
    ),
    "numbered frames, some without a label": (
        ["images/f_0000.png", "images/f_0001.png", "images/g_0000.png", "labels/f_0001_mask.png"],
        {
            "f_0000": ["images/f_0000.png"],
            "f_0001": ["images/f_0001.png", "labels/f_0001_mask.png"],
            "g_0000": ["images/g_0000.png"],
        },
    ),
    "a number that looks like a channel": (
        ["imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz"],
        {"amos_0001": ["imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz"]},
    ),
    "nnU-Net's channel number": (
        ["imagesTr/amos_0001_0000.nii.gz", "imagesTr/u_0000.nii.gz", "labelsTr/amos_0001.nii.gz"],
        {
            "amos_0001": ["imagesTr/amos_0001_0000.nii.gz", "labelsTr/amos_0001.nii.gz"],
            "u": ["imagesTr/u_0000.nii.gz"],
        },
    ),
    "masks beside images": (
        ["images/a.png", "images/a_mask.png", "images/b.png", "images/b-seg.png", "images/c.png"],
        {
            "a": ["images/a.png", "images/a_mask.png"],
            "b": ["images/b.png", "images/b-seg.png"],
            "c": ["images/c.png"],
        },
    ),
    "all files in one folder": (
        ["a.nii.gz", "a_gt.nii.gz", "b.nii.gz"],
        {"a": ["a.nii.gz", "a_gt.nii.gz"], "b": ["b.nii.gz"]},
    ),
    "images in the root, labels in a folder": (
        ["a.png", "b.png", "masks/a.png"],
        {"a": ["a.png", "masks/a.png"], "b": ["b.png"]},
    ),
    "several masks of an image": (
        [
            *("images/b (1).png", "images/b (1)_mask.png", "images/b (1)_mask_1.png"),
            *("images/c.png", "images/c_mask_10.png", "images/c_mask_2.png"),
        ],
        {
            "b (1)": ["images/b (1).png", "images/b (1)_mask.png", "images/b (1)_mask_1.png"],
            "c": ["images/c.png", "images/c_mask_2.png", "images/c_mask_10.png"],
        },
    ),
    "a mask per class": (
        [
            *("images/c0.png", "labels/c0_mask_liver.png", "labels/c0_mask_spleen.png"),
            "labels/c0_mask_background.png",
            *("images/c1.png", "labels/c1_mask_spleen_1.png", "labels/c1_mask_spleen_2.png"),
        ],
        {
            "c0": [
                "images/c0.png",
                "labels/c0_mask_liver.png:liver",
                "labels/c0_mask_spleen.png:spleen",
            ],
            "c1": [
                "images/c1.png",
                "labels/c1_mask_spleen_1.png:spleen",
                "labels/c1_mask_spleen_2.png:spleen",
            ],
        },
    ),
    "a mask with one more word": (
        ["images/c0.png", "labels/c0_mask_final.png"],
        {"c0": ["images/c0.png", "labels/c0_mask_final.png"]},
    ),
    "a folder per case": (
        ["images/c0/x.nii.gz", "labels/c0/heart_seg.nrrd", "labels/c0/liver_seg.nrrd"],
        {
            "c0": [
                "images/c0/x.nii.gz",
                "labels/c0/heart_seg.nrrd:heart",
                "labels/c0/liver_seg.nrrd:liver",
            ]
        },
    ),
    "a folder per case with image and labels": (
        ["c0/t1.nrrd", "c0/heart_seg.nrrd", "c0/liver_seg.nrrd", "c1/t1.nrrd", "c1/t1_seg.nrrd"],
        None,  # c1 has a label without a class
    ),
    "a folder per case with one label": (
        ["c0/t1.nrrd", "c0/t1_seg.nrrd", "c1/t1.nrrd", "c1/tumor_seg.nrrd", "c2/t1.nrrd"],
        {
            "c0": ["c0/t1.nrrd", "c0/t1_seg.nrrd"],
            "c1": ["c1/t1.nrrd", "c1/tumor_seg.nrrd"],
            "c2": ["c2/t1.nrrd"],
        },
    ),
    "a folder per case whose name the label has": (
        [f"{c}/{c}_{kind}.nrrd" for c in ("c0", "c1") for kind in ("t1", "seg")]
        + ["c2/c2_t1.nrrd", "c2/c2_seg_1.nrrd", "c2/c2_seg_2.nrrd"],
        {
            "c0": ["c0/c0_t1.nrrd", "c0/c0_seg.nrrd"],
            "c1": ["c1/c1_t1.nrrd", "c1/c1_seg.nrrd"],
            "c2": ["c2/c2_t1.nrrd", "c2/c2_seg_1.nrrd", "c2/c2_seg_2.nrrd"],
        },
    ),
    "a folder per case with a channel's number": (
        ["imagesTr/c0/x_0000.nii.gz", "labelsTr/c0/x.nii.gz"],
        {"c0": ["imagesTr/c0/x_0000.nii.gz", "labelsTr/c0/x.nii.gz"]},
    ),
    "a folder per class": (
        ["images/a.png", "images/b.png", *(f"masks/{o}/{c}.png" for o in ("x", "y") for c in "ab")],
        {
            "a": ["images/a.png", "masks/x/a.png:x", "masks/y/a.png:y"],
            "b": ["images/b.png", "masks/x/b.png:x", "masks/y/b.png:y"],
        },
    ),
    "images in subfolders, labels in one folder": (
        ["images/x/a.png", "images/x/b.png", "images/y/c.png", "labels/a.png", "labels/c_gt.png"],
        {
            "x_a": ["images/x/a.png", "labels/a.png"],
            "x_b": ["images/x/b.png"],
            "y": ["images/y/c.png", "labels/c_gt.png"],
        },
    ),
    "subfolders with several images": (
        [f"{part}/{site}/{n}.png" for part in ("images", "labels") for site in "xy" for n in "12"],
        {
            f"{site}_{n}": [f"images/{site}/{n}.png", f"labels/{site}/{n}.png"]
            for site in "xy"
            for n in "12"
        },
    ),
    "an image whose name ends like a mask": (
        [
            "images/brain_gt.png",
            "images/x_mask.png",
            "labels/brain_gt.png",
            "labels/x_mask_seg.png",
        ],
        {
            "brain_gt": ["images/brain_gt.png", "labels/brain_gt.png"],
            "x_mask": ["images/x_mask.png", "labels/x_mask_seg.png"],
        },
    ),
    "one folder in the folder": (
        ["doc/readme.txt", "Set 1/images/a.png", "Set 1/labels/a.png", "__MACOSX/Set 1/._a.png"],
        {"a": ["Set 1/images/a.png", "Set 1/labels/a.png"]},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_pairs(name, tmp_path):
    files, expected = CASES[name]
    cases, source = find(make_files(tmp_path, *files))
    if expected is None:
        assert names(tmp_path, source.files.refused) == ["c1/t1_seg.nrrd"]
        return
    assert cases == expected
    assert not source.files.refused
    # The description that is printed, as dataset.yaml, finds the same cases.
    (tmp_path / "dataset.yaml").write_text(to_yaml(source.description), encoding="utf-8")
    assert find(tmp_path)[0] == expected


def test_names_are_compared_in_the_same_unicode_form(tmp_path):
    name = "Müller"
    image, label = (unicodedata.normalize(form, name) for form in ("NFD", "NFC"))
    make_files(tmp_path, f"images/{image}.png", f"labels/{label}.png", "labels/other.png")
    (tmp_path / "patients.csv").write_text(f"image,patient\n{image}.png,p1\n", encoding="utf-8")
    (case,) = Folder().find(tmp_path)
    assert (case.id, case.group, len(case.labels)) == (label, "p1", 1)


@pytest.mark.parametrize("where", ["images", "labels"])
def test_names_that_are_not_text_are_refused(where, tmp_path):
    make_files(tmp_path, "images/a.png", "labels/a.png")
    path = os.fsencode(tmp_path / where) + b"/caf\xe9.png"
    Path(os.fsdecode(path)).touch()
    source = Folder()
    source.find(tmp_path)
    (reason,) = source.files.refused.values()
    assert reason == f"{where}/caf\\udce9.png has a name that is not UTF-8; rename it"


@pytest.mark.parametrize(("where", "other"), [("images", "labels"), ("labels", "images")])
def test_links_that_lead_nowhere_are_refused(where, other, tmp_path):
    make_files(tmp_path, "images/a.png", "labels/a.png", f"{other}/b.png")
    (tmp_path / where / "b.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / where / "loop.png").symlink_to("loop.png")
    cases, source = find(tmp_path)
    assert names(tmp_path, source.files.refused) == [f"{where}/b.png", f"{where}/loop.png"]
    assert "is a link to a file that does not exist; get the file" in str(source.files.refused)
    assert list(cases) == (["a"] if where == "images" else ["a", "b"])


def test_files_that_are_not_regular_are_refused(tmp_path):
    make_files(tmp_path, "images/a.png", "labels/a.png")
    os.mkfifo(tmp_path / "images/b.png")
    _, source = find(tmp_path)
    assert list(source.files.refused.values()) == ["images/b.png is not a regular file; remove it"]


def test_long_names_of_cases_are_refused(tmp_path):
    folder, stem = "f" * 200, "s" * 100
    make_files(tmp_path, f"images/{folder}/{stem}.png", f"images/{folder}/b.png", "images/a.png")
    make_files(tmp_path, "labels/a.png")
    cases, source = find(tmp_path)
    assert list(cases) == ["a", f"{folder}_b"]
    assert "has a name of more than 240 bytes" in str(source.files.refused)


def test_linked_folders_are_searched_but_not_in_circles(tmp_path):
    make_files(tmp_path / "elsewhere", "a.png")
    make_files(tmp_path / "set", "labels/a.png")
    (tmp_path / "set/images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/labels/again").symlink_to(tmp_path / "set")
    cases, _ = find(tmp_path / "set")
    assert cases == {"a": ["images/a.png", "labels/a.png"]}
    skipped = {file.name: file.skipped for file in list_files(tmp_path / "set")}
    assert skipped["labels/again/"] == "a link to a folder, not followed"


LEFT_OUT = {
    "labels/b_mask.png": "no image has the name of this label",
    "images/x_mask.png": "no image has the name of this label",
    "images/film.avi": "not in a supported image format",
    "images/a/b/c.png": "nested more than one folder deep, which is not searched",
    "imagesTs/t.png": "the test images of nnU-Net; predict their masks with crkd predict",
    "other/a.png": "in other/, which is not searched",
    "masks/a.png": "in masks/, which is not searched",
    "b.png": "outside the folders of images and labels",
}


def test_what_is_left_out_has_a_reason(tmp_path):
    make_files(tmp_path, "images/a.png", "labels/a.png", "images/about.txt", *LEFT_OUT)
    _, source = find(tmp_path)
    left_out = source.files.left_out
    assert {
        path.relative_to(tmp_path).as_posix(): why for path, why in left_out.items()
    } == LEFT_OUT


@pytest.mark.parametrize("base", ["", "images/"])
def test_predicted_masks_beside_their_images_are_not_images(base, tmp_path):
    cases = [
        f"{base}{case}/{name}" for case in ("p1", "p2-masks") for name in ("t1.nii", "t1_gt.nii")
    ]
    masks = [f"{base}p1-masks/t1.nii", f"{base}p1-masks/t1_gt.nii"]
    make_files(tmp_path, *cases, *masks)
    found, source = find(tmp_path)
    assert found == {"p1": cases[:2], "p2-masks": cases[2:]}
    reasons = dict.fromkeys(masks, "predicted masks of the images in p1/")
    left_out = source.files.left_out
    assert {path.relative_to(tmp_path).as_posix(): why for path, why in left_out.items()} == reasons


@pytest.mark.parametrize(
    ("labels", "refused"),
    [
        (["a.png", "a_mask.png"], ["a.png", "a_mask.png"]),
        (["a.png", "a.tif"], ["a.png", "a.tif"]),
        (["a_mask.png", "a_seg.png"], ["a_mask.png", "a_seg.png"]),
        (["a_mask_x.png", "a_mask_y.png", "a_mask.png"], ["a_mask.png"]),
        (["a_mask_x.png", "a_mask_y.png", "b.png"], ["b.png"]),
        (["a_mask_x.png", "a_seg_x.png", "a_mask_y.png"], ["a_mask_x.png", "a_seg_x.png"]),
    ],
)
def test_labels_that_contradict_each_other_are_refused(labels, refused, tmp_path):
    make_files(tmp_path, "images/a.png", "images/b.png", *(f"labels/{name}" for name in labels))
    _, source = find(tmp_path)
    assert names(tmp_path / "labels", source.files.refused) == refused


def test_a_channel_can_be_chosen(tmp_path):
    files = [f"imagesTr/{case}_{channel}.nii.gz" for case in "ab" for channel in ("0000", "0001")]
    make_files(tmp_path, *files, "labelsTr/a.nii.gz")
    line = 'images: "imagesTr/{name}_0000.nii.gz"'
    (tmp_path / "dataset.yaml").write_text(line, encoding="utf-8")
    cases, _ = find(tmp_path)
    assert cases == {
        "a": ["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"],
        "b": ["imagesTr/b_0000.nii.gz"],
    }


@pytest.mark.parametrize(
    ("name", "others", "similar"),
    [
        ("pta01", ["Pat01", "Pat02"], "Pat01"),
        ("patient_1", ["Patient-001"], "Patient-001"),
        ("case_10", ["case_11"], None),
        ("case_1", ["case_10", "case_2"], None),
        ("x", ["scan"], None),
    ],
)
def test_a_similar_name_has_the_same_numbers(name, others, similar):
    assert similar_name(name, others) == similar


def test_hints_do_not_name_cases_that_have_a_label(tmp_path):
    make_files(tmp_path, "images/Pat1.png", "images/scan2.png", "labels/Pat1.png")
    make_files(tmp_path, "labels/pat1.png", "labels/scna2.png")
    _, source = find(tmp_path)
    assert source.notes == ["labels without an image: scna2: did you mean scan2?"]
