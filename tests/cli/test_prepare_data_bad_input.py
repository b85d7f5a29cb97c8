"""crkd prepare-data on bad input: one line that says what, where and what to do; nothing half-written."""

import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image


def written(tmp_path):
    """What lies in prepared/, hidden files too."""
    return sorted(path.name for path in (tmp_path / "data/prepared").glob("*"))


def rejects(prepare_data, tmp_path, own, *messages):
    before = written(tmp_path)
    code, err = prepare_data("mine", "--source", own)
    assert code == 1
    for message in messages:
        assert message in err, err
    assert "nothing was written; mend them" in err
    assert written(tmp_path) == before


def test_wrong_names(prepare_data, own):
    code, err = prepare_data("isic2017")
    assert (code, err.count("\n")) == (2, 1)
    assert "no data set is called 'isic2017'; did you mean 'isic2018'?" in err
    for name in ("../mine", "a/b", ".hidden", ""):
        code, err = prepare_data(name, "--source", own)
        assert code == 2
        assert "cannot name a data set" in err


def test_no_such_source(prepare_data, tmp_path):
    code, err = prepare_data("acdc", "--source", tmp_path / "nowhere")
    assert code == 1
    assert "nowhere does not exist; give the folder or archive" in err


def test_a_source_that_is_another(prepare_data, own):
    (own / "labels").rename(own / "masks")
    code, err = prepare_data("kvasir", "--source", own)
    assert code == 1
    assert (
        "mine holds no case of kvasir's official split; for data of your own give another name"
        in err
    )
    code, err = prepare_data("mine", "--source", own / "images/a.png")
    assert code == 1
    assert "a.png is one image; give the folder" in err


@pytest.mark.parametrize("name", ["acdc", "la", "isic2018", "kvasir", "mine"])
def test_a_folder_of_something_else(prepare_data, name, tmp_path):
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
def test_bad_files(prepare_data, own, tmp_path, folder, content, message):
    path = own / folder / "b.png"
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    rejects(prepare_data, tmp_path, own, f"error: b: {folder}/b.png", message)


def test_all_problems_are_listed_and_the_old_store_stays(prepare_data, own, tmp_path):
    assert prepare_data("mine", "--source", own)[0] == 0
    index = (tmp_path / "data/prepared/mine/index.json").read_bytes()
    (own / "images/a.png").write_bytes(b"")
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(own / "labels/b.png")
    Image.fromarray(np.full((20, 30), 7, np.uint8)).save(own / "images/c.png")
    rejects(
        prepare_data,
        tmp_path,
        own,
        "images/a.png is empty",
        "labels/b.png has shape (30, 20), its image (20, 30)",
        "images/c.png is constant, every value is 7",
        "error: 3 problems in",
    )
    assert (tmp_path / "data/prepared/mine/index.json").read_bytes() == index
    code, err = prepare_data("mine", "--source", own, "--check")
    assert code == 1
    assert "3 problems" in err


def test_duplicate_ids(prepare_data, own, tmp_path):
    Image.open(own / "images/a.png").save(own / "images/a.tif")
    rejects(
        prepare_data,
        tmp_path,
        own,
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
    rejects(
        prepare_data,
        tmp_path,
        volumes,
        "images/b.nii.gz contains 2 NaN or infinite values; repair or remove it",
    )


def test_a_2d_file_in_a_3d_set(prepare_data, volumes, tmp_path, rng):
    Image.fromarray(rng.integers(0, 200, (8, 9), dtype=np.uint8)).save(volumes / "images/d.png")
    rejects(
        prepare_data, tmp_path, volumes, "images/d.png is 2D, the data set mine is 3D; take it out"
    )


def test_a_truncated_volume(prepare_data, volumes, tmp_path):
    for name in ("images/a.nii.gz", "labels/c.nii.gz"):
        whole = (volumes / name).read_bytes()
        (volumes / name).write_bytes(whole[:-30])
    rejects(
        prepare_data,
        tmp_path,
        volumes,
        "a: images/a.nii.gz cannot be read",
        "c: labels/c.nii.gz cannot be read",
    )


def test_other_geometry(prepare_data, volumes, tmp_path, rng):
    label = rng.integers(0, 2, (4, 8, 9)).astype(np.uint8)
    volume(volumes / "labels/a.nii.gz", label, spacing=(1.0, 1.5, 2.0))
    volume(volumes / "labels/b.nii.gz", label, direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    rejects(
        prepare_data,
        tmp_path,
        volumes,
        "labels/a.nii.gz has spacing (z, y, x) (2.0, 1.5, 1.0)",
        "labels/b.nii.gz has direction (z, y, x) (1.0, ",
    )


def test_label_values_that_are_no_class(prepare_data, tmp_path, rng):
    with h5py.File(tmp_path / "patient001_frame01.h5", "w") as file:
        file["image"], file["label"] = rng.random((3, 8, 8)), np.full((3, 8, 8), 7, np.uint8)
    code, err = prepare_data("acdc", "--source", tmp_path)
    assert code == 1
    assert "patient001_frame01.h5 has label values that are no class: 7; classes are 0 to 3" in err


def test_colors_in_a_gray_set(prepare_data, own, tmp_path, rng):
    Image.fromarray(rng.integers(0, 200, (20, 30, 3), dtype=np.uint8)).save(own / "images/a.png")
    rejects(
        prepare_data,
        tmp_path,
        own,
        "images/a.png has 3 channels, the data set mine is of 1; convert it",
    )


def test_options_that_do_not_fit(prepare_data, own):
    for args, message in (
        (("--spacing", "1,2,3"), "--spacing has 3 numbers, but mine is 2D"),
        (("--spacing", "-1"), "expected mm above 0"),
        (("--published-crop",), "--published-crop is for la only"),
    ):
        code, err = prepare_data("mine", "--source", own, *args)
        assert (code, message in err) == (2, True), err


def test_output_folder_not_writable(cli, own, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = cli("prepare-data", "mine", "--source", own, "--data-root", tmp_path / "file")
    assert result.exit_code == 1
    assert f"error: {tmp_path / 'file'} is a file; give a folder to --data-root" in result.stderr


def test_disk_full(own, tmp_path, rng):
    """A store that fits no more: the message says so, nothing is left, the old store stays."""
    root = tmp_path / "data"
    command = [
        sys.executable,
        "-m",
        "crkd_cli",
        "prepare-data",
        "mine",
        "--source",
        str(own),
        "--data-root",
        str(root),
    ]
    disk = tmp_path / "data"
    disk.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200k", "none", disk], capture_output=True
        ).returncode
        == 0
    )
    try:
        assert subprocess.run(command, capture_output=True).returncode == 0
        before = sorted(root.rglob("*"))
        Image.fromarray(rng.integers(0, 200, (400, 300), dtype=np.uint8)).save(own / "images/e.png")
        limit = (
            "" if mounted else "ulimit -f 100; "
        )  # where mounting is not permitted: files of 100 blocks at most
        result = subprocess.run(
            ["bash", "-c", f'{limit}exec "$@"', "bash", *command], capture_output=True, text=True
        )
        assert result.returncode == 1
        reason = "No space left on device" if mounted else "File too large"
        assert result.stderr.splitlines()[-1].startswith(
            f"error: cannot write {root / 'prepared/mine'}: {reason}; free some"
        )
        assert sorted(root.rglob("*")) == before
    finally:
        if mounted:
            subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png"])
def test_an_archive_with_members_outside(prepare_data, tmp_path, name):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        file.writestr("images/a.png", b"x")
        file.writestr(name, b"evil")
    code, err = prepare_data("mine", "--source", tmp_path / "set.zip")
    assert (code, err.count("\n")) == (1, 1)
    assert f"set.zip contains a file outside its folder ({name}); do not trust it" in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "raw", "set.zip"]


def test_a_frame_that_is_not_there(prepare_data, tmp_path, rng):
    patient = tmp_path / "mine/patient001"
    patient.mkdir(parents=True)
    (patient / "Info.cfg").write_text("ED: 1\nES: 12\n")
    volume(patient / "patient001_frame01.nii.gz", rng.normal(size=(4, 8, 9)).astype(np.float32))
    code, err = prepare_data("acdc", "--source", tmp_path / "mine")
    assert code == 1
    assert (
        "error: patient001_frame02: patient001/patient001_frame12.nii.gz cannot be read: No such file"
        in err
    )
    assert written(tmp_path) == []
