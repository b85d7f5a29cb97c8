"""crkd prepare-data, as a user runs it: every way to the raw files, and every bad input that preparation meets."""

import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from crkd_cli.data.case import Store

INPUT, TRUTH = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"


@pytest.fixture
def run(cli, tmp_path):
    """run("mine", "--source", folder) → (exit code, stderr)."""

    def call(*args):
        result = cli("prepare-data", *args, "--data-root", tmp_path / "data")
        assert result.stdout == ""
        assert "\x1b" not in result.stderr
        assert "Traceback" not in result.stderr
        return result.exit_code, result.stderr

    return call


@pytest.fixture
def own(tmp_path, rng):
    """Four gray pictures with labels 0 and 1."""
    root = tmp_path / "mine"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for case in "abcd":
        Image.fromarray(rng.integers(0, 200, (20, 30), dtype=np.uint8)).save(root / "images" / f"{case}.png")
        Image.fromarray(rng.integers(0, 2, (20, 30), dtype=np.uint8)).save(root / "labels" / f"{case}.png")
    return root


@pytest.fixture
def isic_zips(tmp_path, rng):
    """The two archives of ISIC 2018, of three photos."""
    folder = tmp_path / "archives"
    folder.mkdir()
    for name, ending, shape in ((INPUT, ".jpg", (50, 60, 3)), (TRUTH, "_segmentation.png", (50, 60))):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as file:
            for number in range(3):
                path = folder / f"ISIC_000000{number}{ending}"
                array = rng.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(array if len(shape) == 3 else (array > 128).astype(np.uint8) * 255).save(path)
                file.write(path, f"{name}/{path.name}")
                path.unlink()
    return folder


def written(tmp_path):
    """What lies in prepared/, hidden files too."""
    return sorted(path.name for path in (tmp_path / "data/prepared").glob("*"))


# ── the ways to the raw files ──


def test_own_data(run, own, tmp_path):
    code, err = run("mine", "--source", own)
    assert code == 0
    lines = err.splitlines()
    assert lines[-2] == "4 cases, 4 labelled; size 20 × 30; classes: background, class 1"
    assert lines[-1] == f"store: {tmp_path / 'data/prepared/mine'}. Next: crkd make-splits mine"
    assert len(Store(tmp_path / "data/prepared/mine").cases) == 4


def test_raw_folder_under_the_data_root(run, own, tmp_path):
    (tmp_path / "data/raw").mkdir(parents=True)
    own.rename(tmp_path / "data/raw/mine")
    assert run("mine")[0] == 0


def test_check_writes_nothing(run, own, tmp_path):
    code, err = run("mine", "--source", own, "--check")
    assert code == 0
    assert err.endswith("no problem found; nothing written. Next: crkd prepare-data mine\n")
    assert not (tmp_path / "data").exists()


def test_quiet(run, own):
    assert run("mine", "--source", own, "--quiet") == (0, "")


def test_archives_in_the_current_folder(run, isic_zips, tmp_path, monkeypatch):
    monkeypatch.chdir(isic_zips)
    code, err = run("isic2018")
    assert code == 0
    assert f"found {INPUT}.zip, {TRUTH}.zip here" in err
    assert "2592 of the official split's 2594 ids are missing" in err
    assert list(Store(tmp_path / "data/prepared/isic2018").cases) == ["ISIC_0000000", "ISIC_0000001", "ISIC_0000002"]
    assert (tmp_path / "data/raw/isic2018" / INPUT).is_dir()


@pytest.mark.parametrize("given", ["", f"{INPUT}.zip"])
def test_archives_given_as_source(run, isic_zips, given):
    assert run("isic2018", "--source", isic_zips / given)[0] == 0
    code, err = run("isic2018", "--source", isic_zips / given)
    assert code == 1
    assert "already holds raw files; use them (crkd prepare-data isic2018), or remove them first" in err
    assert run("isic2018")[0] == 0


@pytest.fixture
def mirror(isic_zips, monkeypatch):
    """The archives on an HTTP server of this machine."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(isic_zips))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("CRKD_MIRROR", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield isic_zips
    server.shutdown()
    server.server_close()
    thread.join()


def test_download(run, mirror, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, err = run("isic2018")
    assert code == 0, err
    assert f"/{INPUT}.zip to {tmp_path / 'data/raw/.downloads'}: 0.0 MB" in err
    assert len(Store(tmp_path / "data/prepared/isic2018").cases) == 3
    assert list((tmp_path / "data/raw/.downloads").iterdir()) == []    # unpacked: not kept twice


def test_download_of_something_else_is_not_kept(run, mirror, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (mirror / f"{TRUTH}.zip").write_text("<html>please log in</html>")
    code, err = run("isic2018")
    assert code == 1
    assert f"{TRUTH}.zip is no zip or tar archive; download it again" in err
    assert list((tmp_path / "data/raw/.downloads").iterdir()) == []
    assert not (tmp_path / "data/raw/isic2018").exists()


def test_no_download(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, err = run("isic2018", "--no-download")
    assert code == 1
    assert f"get {INPUT}.zip and {TRUTH}.zip from" in err
    assert "then run: crkd prepare-data isic2018 --source PATH" in err


@pytest.mark.parametrize("name", ["acdc", "la"])
def test_sets_that_need_a_registration(run, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, err = run(name)
    assert code == 1
    assert err.startswith(f"error: no raw files of {name}: {name.upper()} needs a registration: get it from ")
    assert f"then run: crkd prepare-data {name} --source PATH" in err
    assert err.count("\n") == 1


# ── bad input: one line that says what, where and what to do; nothing half-written ──


def rejects(run, tmp_path, own, *messages):
    before = written(tmp_path)
    code, err = run("mine", "--source", own)
    assert code == 1
    for message in messages:
        assert message in err, err
    assert "nothing was written; mend them" in err
    assert written(tmp_path) == before


def test_wrong_names(run, own):
    code, err = run("isic2017")
    assert (code, err.count("\n")) == (2, 1)
    assert "no data set is called 'isic2017'; did you mean 'isic2018'?" in err
    for name in ("../mine", "a/b", ".hidden", ""):
        code, err = run(name, "--source", own)
        assert code == 2
        assert "cannot name a data set" in err


def test_no_such_source(run, tmp_path):
    code, err = run("acdc", "--source", tmp_path / "nowhere")
    assert code == 1
    assert "nowhere does not exist; give the folder or archive" in err


@pytest.mark.parametrize("name", ["acdc", "la", "isic2018", "kvasir", "mine"])
def test_a_folder_of_something_else(run, name, tmp_path):
    (tmp_path / "music").mkdir()
    code, err = run(name, "--source", tmp_path / "music")
    assert code == 1
    assert str(tmp_path / "music") in err
    assert err.splitlines()[-1].startswith("error: no ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!doctype html>", "is a web page"),
        (None, "may be truncated"),
        (b"GARBAGE" * 50, "of another format"),
    ],
)
@pytest.mark.parametrize("folder", ["images", "labels"])
def test_bad_files(run, own, tmp_path, folder, content, message):
    path = own / folder / "b.png"
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    rejects(run, tmp_path, own, f"error: b: {folder}/b.png", message)


def test_all_problems_are_listed_and_the_old_store_stays(run, own, tmp_path):
    assert run("mine", "--source", own)[0] == 0
    index = (tmp_path / "data/prepared/mine/index.json").read_bytes()
    (own / "images/a.png").write_bytes(b"")
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(own / "labels/b.png")
    Image.fromarray(np.full((20, 30), 7, np.uint8)).save(own / "images/c.png")
    rejects(
        run, tmp_path, own, "images/a.png is empty", "labels/b.png has shape (30, 20), its image (20, 30)",
        "images/c.png is constant, every value is 7", "error: 3 problems in",
    )  # fmt: skip
    assert (tmp_path / "data/prepared/mine/index.json").read_bytes() == index
    code, err = run("mine", "--source", own, "--check")
    assert code == 1
    assert "3 problems" in err


def test_duplicate_ids(run, own, tmp_path):
    Image.open(own / "images/a.png").save(own / "images/a.tif")
    rejects(run, tmp_path, own, "error: a: 2 images have this id: images/a.png, images/a.tif; keep one")


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


def test_nan(run, volumes, tmp_path):
    array = np.ones((4, 8, 9), np.float32)
    array[0, 0, :2] = np.nan, np.inf
    volume(volumes / "images/b.nii.gz", array)
    rejects(run, tmp_path, volumes, "images/b.nii.gz holds 2 NaN or infinite values; repair or remove it")


def test_a_2d_file_in_a_3d_set(run, volumes, tmp_path, rng):
    Image.fromarray(rng.integers(0, 200, (8, 9), dtype=np.uint8)).save(volumes / "images/d.png")
    rejects(run, tmp_path, volumes, "images/d.png is 2D, the data set mine is 3D; take it out")


def test_a_truncated_volume(run, volumes, tmp_path):
    for name in ("images/a.nii.gz", "labels/c.nii.gz"):
        whole = (volumes / name).read_bytes()
        (volumes / name).write_bytes(whole[:-30])
    rejects(run, tmp_path, volumes, "a: images/a.nii.gz cannot be read", "c: labels/c.nii.gz cannot be read")


def test_other_geometry(run, volumes, tmp_path, rng):
    label = rng.integers(0, 2, (4, 8, 9)).astype(np.uint8)
    volume(volumes / "labels/a.nii.gz", label, spacing=(1.0, 1.0, 2.0))
    volume(volumes / "labels/b.nii.gz", label, direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    rejects(run, tmp_path, volumes, "labels/a.nii.gz has spacing (1.0, 1.0, 2.0)", "labels/b.nii.gz has direction (-1.0,")


def test_label_values_that_are_no_class(run, tmp_path, rng):
    with h5py.File(tmp_path / "patient001_frame01.h5", "w") as file:
        file["image"], file["label"] = rng.random((3, 8, 8)), np.full((3, 8, 8), 7, np.uint8)
    code, err = run("acdc", "--source", tmp_path)
    assert code == 1
    assert "patient001_frame01.h5 has label values that are no class: 7; classes are 0 to 3" in err


def test_colours_in_a_gray_set(run, own, tmp_path, rng):
    Image.fromarray(rng.integers(0, 200, (20, 30, 3), dtype=np.uint8)).save(own / "images/a.png")
    rejects(run, tmp_path, own, "images/a.png has 3 channels, the data set mine is of 1; convert it")


def test_options_that_do_not_fit(run, own):
    for args, message in (
        (("--spacing", "1,2,3"), "--spacing has 3 numbers, but mine is 2D"),
        (("--spacing", "-1"), "expected mm above 0"),
        (("--published-crop",), "--published-crop is for la only"),
    ):
        code, err = run("mine", "--source", own, *args)
        assert (code, message in err) == (2, True), err


def test_output_folder_not_writable(cli, own, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = cli("prepare-data", "mine", "--source", own, "--data-root", tmp_path / "file")
    assert result.exit_code == 1
    assert f"error: cannot write {tmp_path / 'file/prepared/mine'}: Not a directory" in result.stderr


def test_disk_full(own, tmp_path, rng):
    """A store that fits no more: the message says so, nothing is left, the old store stays."""
    root = tmp_path / "data"
    command = [sys.executable, "-m", "crkd_cli", "prepare-data", "mine", "--source", str(own), "--data-root", str(root)]
    disk = tmp_path / "data"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", disk], capture_output=True).returncode == 0
    try:
        assert subprocess.run(command, capture_output=True).returncode == 0
        before = sorted(root.rglob("*"))
        Image.fromarray(rng.integers(0, 200, (400, 300), dtype=np.uint8)).save(own / "images/e.png")
        limit = "" if mounted else "ulimit -f 100; "    # where mounting is not permitted: files of 100 blocks at most
        result = subprocess.run(["bash", "-c", f'{limit}exec "$@"', "bash", *command], capture_output=True, text=True)
        assert result.returncode == 1
        reason = "No space left on device" if mounted else "File too large"
        assert result.stderr.splitlines()[-1].startswith(f"error: cannot write {root / 'prepared/mine'}: {reason}; free some")
        assert sorted(root.rglob("*")) == before
    finally:
        if mounted:
            subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png"])
def test_an_archive_with_members_outside(run, tmp_path, name):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        file.writestr("images/a.png", b"x")
        file.writestr(name, b"evil")
    code, err = run("mine", "--source", tmp_path / "set.zip")
    assert (code, err.count("\n")) == (1, 1)
    assert f"set.zip holds a file outside its folder ({name}): refused; do not trust it" in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "raw", "set.zip"]


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "folder", "cases"),
    [("acdc", "acdc", 14), ("acdc", "acdc_nifti", 6), ("la", "la", 6), ("isic2018", "isic2018", 11), ("kvasir", "kvasir", 14)],
)
def test_real_cases(run, shared_data, tmp_path, name, folder, cases):
    code, err = run(name, "--source", shared_data / folder)
    assert code == 0
    assert f"{cases} cases" in err.splitlines()[-2]
    assert len(Store(tmp_path / "data/prepared" / name).cases) == cases
