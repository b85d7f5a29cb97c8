"""crkd prepare-data as a user runs it: all ways to get the raw files."""

import shlex
import shutil
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from crkd_cli.cli.bars import progress
from crkd_cli.cli.console import info
from crkd_cli.data.obtain import obtain
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.splits import read_split
from crkd_cli.data.store import Store

INPUT, TRUTH = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"


@pytest.fixture
def isic_zips(tmp_path, rng):
    """The two archives of ISIC 2018, with three photographs."""
    folder = tmp_path / "archives"
    folder.mkdir()
    for name, ending, shape in (
        (INPUT, ".jpg", (50, 60, 3)),
        (TRUTH, "_segmentation.png", (50, 60)),
    ):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as file:
            for number in range(3):
                path = folder / f"ISIC_000000{number}{ending}"
                array = rng.integers(0, 256, shape, dtype=np.uint8)
                if name == TRUTH:
                    array = np.where(array > 128, 255, 0).astype(np.uint8)
                Image.fromarray(array).save(path)
                file.write(path, f"{name}/{path.name}")
                path.unlink()
    return folder


def test_own_data(prepare_data, raw_folder, tmp_path):
    code, err = prepare_data("mine", "--source", raw_folder)
    assert code == 0
    lines = err.splitlines()
    assert lines[-2] == "4 cases, 4 labeled; size 32 × 32; classes: background, class 1"
    root = tmp_path / "data"
    following = f"Next: crkd make-splits mine --data-root {root}"
    assert lines[-1] == f"store: {root / 'prepared/mine'}. {following}"
    assert len(Store(tmp_path / "data/prepared/mine").cases) == 4


def test_raw_folder_under_the_data_root(prepare_data, raw_folder, tmp_path):
    (tmp_path / "data/raw").mkdir(parents=True)
    raw_folder.rename(tmp_path / "data/raw/mine")
    assert prepare_data("mine")[0] == 0


def test_check_writes_nothing_and_names_a_command_that_works(
    prepare_data, cli, raw_folder, tmp_path
):
    raw_folder = raw_folder.rename(tmp_path / "my own")
    options = ("--check", "--spacing", "2", "--ignore", "-1", "--workers", "1")
    code, err = prepare_data("mine", "--source", raw_folder, *options)
    assert code == 0
    assert not (tmp_path / "data").exists()
    message, _, command = err.splitlines()[-1].partition("Next: crkd ")
    assert message == "no problem found; no store written. "
    assert cli(*shlex.split(command)).exit_code == 0
    store = Store(tmp_path / "data/prepared/mine")
    assert store.cases["a"].native_spacing_mm == (2.0, 2.0)
    assert store.spec.ignore == -1


def test_prepared_again_with_new_labels(prepare_data, cli, raw_folder, tmp_path):
    """It says what is new, and the command that it names keeps the test part."""
    later = tmp_path / "d.png"
    (raw_folder / "labels" / "d.png").rename(later)
    code, err = prepare_data("mine", "--source", raw_folder)
    assert code == 0
    assert "since the last preparation" not in err
    root = tmp_path / "data"
    cli("make-splits", "mine", "--val", "0", "--test", "1", "--data-root", root)
    split = read_split(root / "prepared/mine/splits/all.yaml")

    assert "since the last preparation" not in prepare_data("mine", "--source", raw_folder)[1]
    later.rename(raw_folder / "labels" / "d.png")
    shutil.copy(raw_folder / "images" / "a.png", raw_folder / "images" / "e.png")
    code, err = prepare_data("mine", "--source", raw_folder)
    assert code == 0
    assert "since the last preparation: 1 new label: d; 1 new image: e\n" in err
    command = err.splitlines()[-1].partition("Next: crkd ")[2]
    assert command.startswith("make-splits mine --keep all")
    assert cli(*shlex.split(command)).exit_code == 0
    extended = read_split(root / "prepared/mine/splits/all.yaml")
    assert extended.test == split.test
    assert set(extended.labeled) == {"a", "b", "c", "d"} - set(split.test)
    assert extended.unlabeled == ("e",)


def test_quiet(prepare_data, raw_folder):
    assert prepare_data("mine", "--source", raw_folder, "--quiet") == (0, "")


def test_archives_in_the_current_folder(prepare_data, isic_zips, tmp_path, monkeypatch):
    monkeypatch.chdir(isic_zips)
    code, err = prepare_data("isic2018")
    assert code == 0
    assert f"found {INPUT}.zip, {TRUTH}.zip in the current folder" in err
    assert "2592 of the official split's 2594 ids are missing" in err
    store = Store(tmp_path / "data/prepared/isic2018")
    assert list(store.cases) == ["ISIC_0000000", "ISIC_0000001", "ISIC_0000002"]
    assert (tmp_path / "data/raw/isic2018" / INPUT).is_dir()


@pytest.mark.parametrize("given", ["", f"{INPUT}.zip"])
def test_archives_given_as_source(prepare_data, isic_zips, given):
    code, err = prepare_data("isic2018", "--source", isic_zips / given, "--check")
    assert code == 0
    # The archives are unpacked now, so --source is not needed again.
    assert "Next: crkd prepare-data isic2018 --data-root" in err
    code, err = prepare_data("isic2018", "--source", isic_zips / given)
    assert code == 1
    advice = "use them (crkd prepare-data isic2018), or remove them first"
    assert f"already contains raw files; {advice}" in err
    assert prepare_data("isic2018")[0] == 0


@pytest.fixture
def mirror(isic_zips, monkeypatch):
    """The archives on a local HTTP server."""
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


def test_download(prepare_data, mirror, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, err = prepare_data("isic2018")
    assert code == 0, err
    assert f"/{INPUT}.zip to {tmp_path / 'data/raw/.downloads'}: 0.0 MB" in err
    assert len(Store(tmp_path / "data/prepared/isic2018").cases) == 3
    assert list((tmp_path / "data/raw/.downloads").iterdir()) == []  # removed after unpacking


def test_downloads_that_are_not_archives_are_removed(prepare_data, mirror, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (mirror / f"{TRUTH}.zip").write_text("<html>please log in</html>")
    code, err = prepare_data("isic2018")
    assert code == 1
    assert f"{TRUTH}.zip is not a zip or tar archive; download it again" in err
    assert [path.name for path in (tmp_path / "data/raw/.downloads").iterdir()] == [f"{INPUT}.zip"]
    assert not (tmp_path / "data/raw/isic2018").exists()


def test_downloads_are_kept_if_unpacking_is_interrupted(mirror, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def interrupt(title, total, unit):
        if title.startswith("unpacking"):
            raise KeyboardInterrupt
        return progress(title, total, unit)

    with pytest.raises(KeyboardInterrupt):
        obtain("isic2018", SOURCES["isic2018"](), None, tmp_path / "data", True, interrupt, info)
    names = {path.name for path in (tmp_path / "data/raw/.downloads").iterdir()}
    assert names == {f"{INPUT}.zip", f"{TRUTH}.zip"}


def test_no_download(prepare_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, err = prepare_data("isic2018", "--no-download")
    assert code == 1
    assert f"get {INPUT}.zip and {TRUTH}.zip from" in err
    assert "then run: crkd prepare-data isic2018 --source PATH" in err


@pytest.mark.parametrize("name", ["acdc", "la"])
def test_datasets_that_need_a_registration(prepare_data, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, err = prepare_data(name)
    assert code == 1
    reason = f"{name.upper()} needs a registration: get it from "
    assert err.startswith(f"error: no raw files of {name}: {reason}")
    assert f"then run: crkd prepare-data {name} --source PATH" in err
    assert err.count("\n") == 1


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "folder", "cases"),
    [
        ("acdc", "acdc", 14),
        ("acdc", "acdc_nifti", 6),
        ("la", "la", 6),
        ("isic2018", "isic2018", 11),
        ("kvasir", "kvasir", 14),
    ],
)
def test_real_cases(prepare_data, shared_data, tmp_path, name, folder, cases):
    code, err = prepare_data(name, "--source", shared_data / folder)
    assert code == 0
    assert f"{cases} cases" in err.splitlines()[-2]
    assert len(Store(tmp_path / "data/prepared" / name).cases) == cases


def test_check_verifies_the_store(prepare_data, raw_folder, tmp_path):
    root = tmp_path / "data" / "prepared" / "mine"
    assert prepare_data("mine", "--source", raw_folder)[0] == 0
    code, err = prepare_data("mine", "--check")  # without the raw files
    assert (code, "store verified: all 16 arrays in" in err) == (0, True)
    assert "no raw files of mine: only the store was checked" in err
    code, err = prepare_data("mine", "--source", raw_folder, "--check")
    assert (code, "store verified" in err, "no problem found" in err) == (0, True, True)

    file = root / "labels" / "b.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for options in ((), ("--source", raw_folder)):
        code, err = prepare_data("mine", *options, "--check")
        assert code == 1
        message = f"error: {root} is damaged: labels/b.npy; run: crkd prepare-data mine --source"
        assert message in err.splitlines()[-1]
    assert prepare_data("mine", "--source", raw_folder)[0] == 0
    assert prepare_data("mine", "--check")[0] == 0
