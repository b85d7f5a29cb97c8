"""crkd prepare-data with bad input: one line says what to do, and nothing is written."""

import gzip
import struct
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image


def prepared_files(tmp_path):
    """List prepared/ with its hidden files."""
    return sorted(path.name for path in (tmp_path / "data/prepared").glob("*"))


def assert_rejected(prepare_data, tmp_path, raw_folder, *messages):
    """Preparation fails with all of `messages`, and leaves prepared/ as it was."""
    before = prepared_files(tmp_path)
    code, err = prepare_data("mine", "--source", raw_folder)
    assert code == 1
    for message in messages:
        assert message in err, err
    assert "nothing was written; correct the files and rerun" in err
    assert prepared_files(tmp_path) == before


def test_invalid_names(prepare_data, raw_folder):
    code, err = prepare_data("isic2017")
    assert (code, err.count("\n")) == (2, 1)
    assert "no dataset is called 'isic2017'; did you mean 'isic2018'?" in err
    for name in ("../mine", "a/b", ".hidden", ""):
        code, err = prepare_data(name, "--source", raw_folder)
        assert code == 2
        assert "cannot be the name of a dataset" in err


def test_a_source_that_does_not_exist(prepare_data, tmp_path):
    code, err = prepare_data("acdc", "--source", tmp_path / "nowhere")
    assert code == 1
    assert "nowhere does not exist; give the folder or archive" in err


def test_a_source_with_other_data(prepare_data, raw_folder):
    (raw_folder / "labels").rename(raw_folder / "masks")
    code, err = prepare_data("kvasir", "--source", raw_folder)
    assert code == 1
    advice = "choose another name for your own data"
    assert f"mine contains no case of kvasir's official split; {advice}" in err
    code, err = prepare_data("mine", "--source", raw_folder / "images/a.png")
    assert code == 1
    assert "a.png is one image; give the folder" in err
    (raw_folder / "dataset.yaml").touch()
    code, err = prepare_data("mine", "--source", raw_folder / "dataset.yaml")
    assert code == 1
    assert "dataset.yaml describes a dataset; give the folder that contains it" in err


@pytest.mark.parametrize("name", ["acdc", "la", "isic2018", "kvasir", "mine"])
def test_a_folder_of_other_files(prepare_data, name, tmp_path):
    (tmp_path / "music").mkdir()
    code, err = prepare_data(name, "--source", tmp_path / "music")
    assert code == 1
    assert str(tmp_path / "music") in err
    assert err.splitlines()[-1].startswith("error: no ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!doctype html>", "is a web page"),
        (None, "may be truncated"),
        (b"GARBAGE" * 50, "in another format"),
    ],
)
@pytest.mark.parametrize("folder", ["images", "labels"])
def test_bad_files(prepare_data, raw_folder, tmp_path, folder, content, message):
    path = raw_folder / folder / "b.png"
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    assert_rejected(prepare_data, tmp_path, raw_folder, f"error: b: {folder}/b.png", message)


def test_refused_files_are_named_once(prepare_data, raw_folder, tmp_path):
    (raw_folder / "labels/a.png").unlink()
    (raw_folder / "labels/a.png").symlink_to("nowhere.png")
    error = "error: labels/a.png: is a link to a file that does not exist; get the file, or remove"
    assert_rejected(prepare_data, tmp_path, raw_folder, error)


def test_all_problems_are_listed_and_the_previous_store_is_kept(prepare_data, raw_folder, tmp_path):
    assert prepare_data("mine", "--source", raw_folder)[0] == 0
    index = (tmp_path / "data/prepared/mine/index.json").read_bytes()
    (raw_folder / "images/a.png").write_bytes(b"")
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(raw_folder / "labels/b.png")
    Image.fromarray(np.full((20, 30), 7, np.uint8)).save(raw_folder / "images/c.png")
    assert_rejected(
        prepare_data,
        tmp_path,
        raw_folder,
        "images/a.png is empty",
        "labels/b.png has shape (30, 20), its image (20, 30)",
        "images/c.png is constant, every value is 7",
        "error: 3 problems in",
    )
    assert (tmp_path / "data/prepared/mine/index.json").read_bytes() == index
    code, err = prepare_data("mine", "--source", raw_folder, "--check")
    assert code == 1
    assert "3 problems" in err


def test_duplicate_ids(prepare_data, raw_folder, tmp_path):
    Image.open(raw_folder / "images/a.png").save(raw_folder / "images/a.tif")
    assert_rejected(
        prepare_data,
        tmp_path,
        raw_folder,
        "error: a: 2 images have this id: images/a.png, images/a.tif; keep one",
    )


def volume(path, array, spacing=(1.0, 1.0, 1.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def volumes(tmp_path, rng):
    root = tmp_path / "mine"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for case in "abc":
        volume(root / f"images/{case}.nii.gz", rng.normal(size=(4, 8, 9)).astype(np.float32))
        volume(root / f"labels/{case}.nii.gz", rng.integers(0, 2, (4, 8, 9)).astype(np.uint8))
    return root


def test_nan(prepare_data, volumes, tmp_path):
    array = np.ones((4, 8, 9), np.float32)
    array[0, 0, :2] = np.nan, np.inf
    volume(volumes / "images/b.nii.gz", array)
    assert_rejected(
        prepare_data,
        tmp_path,
        volumes,
        "images/b.nii.gz contains 2 NaN or infinite values; repair or remove it",
    )


@pytest.mark.parametrize("step", [1e30, 1e6, 1e-9])
def test_a_spacing_that_no_scan_has(prepare_data, volumes, tmp_path, step):
    volume(volumes / "images/b.nii.gz", np.eye(9, dtype=np.float32)[None, :8], (1.0, 1.0, step))
    error = f"error: b: images/b.nii.gz states a spacing of ({step:.3g}, 1, 1) mm; correct its head"
    assert_rejected(prepare_data, tmp_path, volumes, error)


def test_a_2d_file_in_a_3d_dataset(prepare_data, volumes, tmp_path, rng):
    Image.fromarray(rng.integers(0, 200, (8, 9), dtype=np.uint8)).save(volumes / "images/d.png")
    assert_rejected(
        prepare_data,
        tmp_path,
        volumes,
        "images/d.png is 2D, but the dataset mine is 3D; remove it",
    )


def test_a_truncated_volume(prepare_data, volumes, tmp_path):
    for name in ("images/a.nii.gz", "labels/c.nii.gz"):
        whole = (volumes / name).read_bytes()
        (volumes / name).write_bytes(whole[:-30])
    assert_rejected(
        prepare_data,
        tmp_path,
        volumes,
        "a: images/a.nii.gz cannot be read",
        "c: labels/c.nii.gz cannot be read",
    )


def test_hostile_volumes(prepare_data, volumes, tmp_path):
    """One crashes ITK, one expands to 8 GB, one claims 10000³ voxels; each is named."""
    (volumes / "images/d.mha").write_text("ObjectType = Image\nNDims = -3\nElementDataFile = LOCAL")
    header = struct.pack("<i36x8h", 348, 3, 32767, 32767, 8, 1, 1, 1, 1)
    header = (header.ljust(70, b"\0") + struct.pack("<2h", 2, 8)).ljust(344, b"\0") + b"n+1\0"
    (volumes / "images/e.nii.gz").write_bytes(gzip.compress(header + bytes(1 << 16)))
    with h5py.File(volumes / "images/f.h5", "w") as file:
        file.create_dataset("image", (10_000,) * 3, "u1", chunks=(8, 8, 8))[0, 0, 0] = 1
    assert_rejected(
        prepare_data,
        tmp_path,
        volumes,
        "d: images/d.mha cannot be read, it may be truncated or damaged (NDims is '-3'",
        "e: images/e.nii.gz is not a plausible image: it declares 8.6 GB of data, the file has",
        "f: images/f.h5 is not a plausible image: it declares 1.0 TB of data, the file has",
        "3 problems",
    )


def test_labels_with_other_geometry(prepare_data, volumes, tmp_path, rng):
    label = rng.integers(0, 2, (4, 8, 9)).astype(np.uint8)
    volume(volumes / "labels/a.nii.gz", label, spacing=(1.0, 1.5, 2.0))
    volume(volumes / "labels/b.nii.gz", label, direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    assert_rejected(
        prepare_data,
        tmp_path,
        volumes,
        # The corner (8, 7, 3) is 7 · 0.5 and 3 · 1 mm away.
        "labels/a.nii.gz lies up to 4.61 mm away from its image images/a.nii.gz: it has spacing "
        "(z, y, x) (2.0, 1.5, 1.0), ",
        "axes RAS; its image has spacing (z, y, x) (1.0, 1.0, 1.0), origin (0.0, 0.0, 0.0), "
        "axes LPS",
    )


def test_label_values_that_are_not_a_class(prepare_data, tmp_path, rng):
    with h5py.File(tmp_path / "patient001_frame01.h5", "w") as file:
        file["image"], file["label"] = rng.random((3, 8, 8)), np.full((3, 8, 8), 7, np.uint8)
    code, err = prepare_data("acdc", "--source", tmp_path)
    assert code == 1
    message = "has label values that are not a class: 7; classes are 0 to 3"
    assert f"patient001_frame01.h5 {message}" in err


def test_colors_in_a_gray_dataset(prepare_data, raw_folder, tmp_path, rng):
    Image.fromarray(rng.integers(0, 200, (20, 30, 3), dtype=np.uint8)).save(
        raw_folder / "images/a.png"
    )
    assert_rejected(
        prepare_data,
        tmp_path,
        raw_folder,
        "images/a.png has 3 channels, but the dataset mine has 1; convert it",
    )


def test_options_that_do_not_apply(prepare_data, raw_folder):
    mistakes = {
        ("--spacing", "1,2,3"): "--spacing has 3 numbers, but mine is 2D",
        ("--spacing", "-1"): "expected mm from 1e-06 to 10000",
        ("--published-crop",): "--published-crop is for la only",
    }
    for args, message in mistakes.items():
        code, err = prepare_data("mine", "--source", raw_folder, *args)
        assert (code, message in err) == (2, True), err


def test_an_output_folder_that_is_not_writable(cli, raw_folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = cli("prepare-data", "mine", "--source", raw_folder, "--data-root", tmp_path / "file")
    assert result.exit_code == 1
    assert f"error: {tmp_path / 'file'} is a file; give a folder to --data-root" in result.stderr


def test_a_full_disk(raw_folder, tmp_path, rng):
    """The message says that the disk is full, and the previous store is kept."""
    root = tmp_path / "data"
    root.mkdir()
    options = ["--source", str(raw_folder), "--data-root", str(root)]
    command = [sys.executable, "-m", "crkd_cli", "prepare-data", "mine", *options]
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", root]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        assert subprocess.run(command, capture_output=True).returncode == 0
        before = sorted(root.rglob("*"))
        image = rng.integers(0, 200, (400, 300), dtype=np.uint8)
        Image.fromarray(image).save(raw_folder / "images/e.png")
        # Where mounting is not permitted, files are limited to 100 blocks.
        limit = "" if mounted else "ulimit -f 100; "
        shell = ["bash", "-c", f'{limit}exec "$@"', "bash", *command]
        result = subprocess.run(shell, capture_output=True, text=True)
        assert result.returncode == 1
        reason = "No space left on device" if mounted else "File too large"
        message = f"error: cannot write {root / 'prepared/mine'}: {reason}; free some"
        assert result.stderr.splitlines()[-1].startswith(message)
        assert sorted(root.rglob("*")) == before
    finally:
        if mounted:
            subprocess.run(["umount", root], check=True)


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png"])
def test_an_archive_with_members_outside(prepare_data, tmp_path, name):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        file.writestr("images/a.png", b"x")
        file.writestr(name, b"evil")
    code, err = prepare_data("mine", "--source", tmp_path / "set.zip")
    assert (code, err.count("\n")) == (1, 1)
    assert f"set.zip contains a file outside its folder ({name}); do not trust it" in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "raw", "set.zip"]


def test_a_missing_frame(prepare_data, tmp_path, rng):
    patient = tmp_path / "mine/patient001"
    patient.mkdir(parents=True)
    (patient / "Info.cfg").write_text("ED: 1\nES: 12\n")
    volume(patient / "patient001_frame01.nii.gz", rng.normal(size=(4, 8, 9)).astype(np.float32))
    code, err = prepare_data("acdc", "--source", tmp_path / "mine")
    assert code == 1
    file = "patient001/patient001_frame12.nii.gz"
    assert f"error: patient001_frame02: {file} cannot be read: No such file" in err
    assert prepared_files(tmp_path) == []
