"""The inventory: every file once, with what becomes of it; readable and cheap for many files."""

import time
from pathlib import Path

import nibabel as nib
import numpy as np

from crkd_cli.data.inventory import FileRecord, Inventory, list_files, take_inventory
from crkd_cli.data.sources.acdc import Acdc
from crkd_cli.data.sources.folder import Folder
from tests.data.helpers import make_files


def inventory_of(root: Path, source=None) -> Inventory:
    source = source or Folder()
    cases = source.find(root)
    return take_inventory(list_files(root), cases, source.files, "not part of it")


def test_every_file_has_one_status(tmp_path):
    make_files(
        tmp_path, "images/a.png", "images/b.png", "labels/a.png", "labels/c.png", ".git/config"
    )
    make_files(tmp_path, "images/notes.txt", "readme.md", "patients.csv", ".DS_Store")
    (tmp_path / "labels/b.png").symlink_to("gone.png")
    (tmp_path / "extra").mkdir()
    (tmp_path / "patients.csv").write_text("image,patient\na,p\nb,q\n")
    entries = {entry.file: entry[2:5] for entry in inventory_of(tmp_path).entries}
    link = "labels/b.png is a link to a file that does not exist; get the file, or remove the link"
    assert entries == {
        ".DS_Store": ("left out", "hidden", None),
        ".git/": ("left out", "a hidden folder", None),
        "extra/": ("left out", "an empty folder", None),
        "images/a.png": ("used", "image", "a"),
        "images/b.png": ("unlabeled", "image", "b"),
        "images/notes.txt": ("left out", "not in a supported image format", None),
        "labels/a.png": ("used", "label", "a"),
        "labels/b.png": ("refused", link, None),
        "labels/c.png": ("left out", "no image has the name of this label", None),
        "patients.csv": ("used", "table of patients", None),
        "readme.md": ("left out", "not part of it", None),
    }


def test_corrected_masks_may_lie_beside_the_other_files_of_predict(tmp_path):
    """The folder that `crkd predict --overlay --probabilities --qc` writes, as labels."""
    names = ("a.nii", "labels-itksnap.txt", "labels-slicer.ctbl", "quality.csv")
    make_files(tmp_path, "images/a.nii", *(f"labels/{name}" for name in names))
    make_files(tmp_path, "labels/overlays/a.png", "labels/probabilities/a.npz")
    entries = {entry.file: entry[2:5] for entry in inventory_of(tmp_path).entries}
    reason = "overlays of the files beside their folder"
    assert entries.pop("labels/overlays/a.png") == ("left out", reason, None)
    assert entries.pop("images/a.nii") == ("used", "image", "a")
    assert entries.pop("labels/a.nii") == ("used", "label", "a")
    assert {status for status, _, _ in entries.values()} == {"left out"}


def test_voxels_in_a_second_file_belong_to_their_header(tmp_path):
    for part in ("images", "labels"):
        make_files(tmp_path, f"{part}/b.img")
        pair = nib.Nifti1Pair(np.zeros((2, 2, 2), np.uint8), np.eye(4))
        nib.save(pair, tmp_path / part / "a.hdr")
        lines = "NDims = 2", "DimSize = 2 2", "ElementType = MET_UCHAR", "ElementDataFile = c.raw"
        (tmp_path / part / "c.mhd").write_text("\n".join(lines) + "\n")
        make_files(tmp_path, f"{part}/c.raw")
    inventory = inventory_of(tmp_path)
    assert inventory.lines()[0] == "used: 2 images, 4 voxel files, 2 labels"
    assert [entry.file for entry in inventory.entries if entry.status == "left out"] == [
        "images/b.img",
        "labels/b.img",
    ]


def test_public_datasets_have_an_inventory_too(tmp_path):
    patient = "patient001"
    files = ["Info.cfg", f"{patient}_4d.nii.gz", *(f"{patient}_frame{n}.nii.gz" for n in (12, 1))]
    make_files(tmp_path / patient, *files)
    (tmp_path / patient / "Info.cfg").write_text("ED: 12\nES: 1\n")
    inventory = inventory_of(tmp_path, Acdc())
    assert inventory.lines() == [
        "used: 1 Info.cfg file",
        "unlabeled: 1 file",
        f"  {patient}/{patient}_frame12.nii.gz",
        "left out (not part of it): 2 files",
        f"  {patient}/{patient}_4d.nii.gz, {patient}/{patient}_frame1.nii.gz",
    ]
    assert inventory.notices() == []


def test_many_files_are_listed_in_short(tmp_path):
    names = [f"images/{n:05d}{ending}.png" for n in range(200) for ending in ("", "_mask")]
    make_files(tmp_path, *names, *(f"images/{n}.db" for n in range(300)))
    start = time.process_time()
    inventory = inventory_of(tmp_path)
    assert time.process_time() - start < 1
    lines = inventory.lines()
    assert lines[0] == "used: 200 images, 200 labels"
    assert lines[1] == "left out (not in a supported image format): 300 files"
    assert lines[-1].endswith("and 280 more (--json lists all)")
    assert len(lines) < 12
    assert all(len(line) < 80 for line in lines)
    assert len(inventory.tree()) == 700


def test_names_are_printed_without_effect_on_the_screen(tmp_path):
    make_files(tmp_path, "images/a.png", "labels/a.png", "images/\x1b[2Jx.db")
    inventory = inventory_of(tmp_path)
    assert inventory.lines()[-1] == r"  images/\x1b[2Jx.db"
    assert inventory.tree()[0]["file"] == "images/\x1b[2Jx.db"  # JSON escapes it
    assert take_inventory([], [], FileRecord(), "").lines() == ["used: no file"]
