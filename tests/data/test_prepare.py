"""Stores: reproducible to the byte, replaced only at the end, prepared with little memory."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from crkd_cli.data import prepare as preparation
from crkd_cli.data.raw import formats
from crkd_cli.data.splits import official_splits
from crkd_cli.errors import CrkdError


@pytest.fixture
def raw_folder(tmp_path, rng):
    """Three pictures, two with labels."""
    root = tmp_path / "mine"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for case in "abc":
        image = rng.integers(0, 200, (20, 30), dtype=np.uint8)
        Image.fromarray(image).save(root / "images" / f"{case}.png")
        if case != "c":
            label = rng.integers(0, 2, (20, 30), dtype=np.uint8)
            Image.fromarray(label).save(root / "labels" / f"{case}.png")
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_index_describes_the_raw_files(raw_folder, prepared):
    store = prepared("mine", raw_folder)
    a, _, c = store.index.cases
    assert (a.id, a.group, a.source) == ("a", "a", "images/a.png")
    assert (a.shape, a.native_shape) == ((32, 32), (20, 30))  # of the plan, and of the file
    assert a.sha256 == hashlib.sha256((raw_folder / "images/a.png").read_bytes()).hexdigest()
    assert a.label_sha256 == hashlib.sha256(store.native_label("a").tobytes()).hexdigest()
    raw = np.asarray(Image.open(raw_folder / "images/a.png")).astype(float)
    expected = {"min": raw.min(), "max": raw.max(), "mean": raw.mean(), "std": raw.std()}
    assert msgspec.to_builtins(a.intensity[0]) == pytest.approx(expected)
    assert not c.labeled
    assert not (store.root / "labels/c.npy").exists()
    assert "cases without a label, used as unlabeled: 1 of 3" in store.index.notes


def test_the_same_files_give_the_same_bytes_and_splits_are_kept(raw_folder, prepared):
    store = prepared("mine", raw_folder)
    first = content(store.root)
    assert sorted(first) == [
        "dataset.yaml",
        "foreground/a.npy",
        "foreground/b.npy",
        "images/a.npy",
        "images/b.npy",
        "images/c.npy",
        "index.json",
        "labels/a.npy",
        "labels/b.npy",
        "native/a.png",
        "native/b.png",
    ]
    (store.root / "splits").mkdir()
    (store.root / "splits/2.yaml").write_text("written by hand")
    second = content(prepared("mine", raw_folder).root)
    assert second.pop("splits/2.yaml") == b"written by hand"
    assert second == first
    assert [path.name for path in store.root.parent.iterdir()] == ["mine"]


def test_the_digest_depends_on_images_labels_and_spacing(raw_folder, prepared):
    digests = [prepared("mine", raw_folder).digest]
    # Another file with the same class numbers.
    Image.open(raw_folder / "labels/a.png").save(raw_folder / "labels/a.tif")
    (raw_folder / "labels/a.png").unlink()
    assert prepared("mine", raw_folder).digest == digests[0]
    for file in ("labels/a.tif", "images/c.png"):
        Image.fromarray(np.eye(20, 30, dtype=np.uint8)).save(raw_folder / file)
        digests.append(prepared("mine", raw_folder).digest)
    digests.append(prepared("mine", raw_folder, spacing="2").digest)
    assert len(set(digests)) == 4


def test_every_image_and_label_is_read_once(raw_folder, prepared, monkeypatch):
    read = []
    for name in ("read_image", "read_label"):
        original = getattr(formats, name)

        def counted(path, *args, original=original, **options):
            read.append(path.relative_to(raw_folder).as_posix())
            return original(path, *args, **options)

        monkeypatch.setattr(formats, name, counted)
    prepared("mine", raw_folder)
    files = ["images/a.png", "images/b.png", "images/c.png", "labels/a.png", "labels/b.png"]
    assert sorted(read) == files


def test_preparing_again_drops_removed_cases(raw_folder, prepared):
    prepared("mine", raw_folder)
    (raw_folder / "images/c.png").unlink()
    store = prepared("mine", raw_folder)
    assert list(store.cases) == ["a", "b"]
    assert not (store.root / "images/c.npy").exists()


def test_an_interruption_leaves_the_previous_store(raw_folder, prepared, monkeypatch):
    before = content(prepared("mine", raw_folder).root)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "_publish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepared("mine", raw_folder)
    root = raw_folder.parent / "data/prepared"
    assert [path.name for path in root.iterdir()] == ["mine"]
    assert content(root / "mine") == before


def test_preparing_again_cleans_up_after_a_killed_process(raw_folder, prepared):
    """It was killed while it wrote cases, or while it replaced the previous store."""
    store = prepared("mine", raw_folder)
    (store.root / "splits").mkdir()
    (store.root / "splits/2.yaml").write_text("written by hand")
    store.root.rename(store.root.with_name(".tmp-mine-old"))
    for leftover in (".tmp-mine-abcdefgh", ".tmp-mine-2-abcdefgh"):
        store.root.with_name(leftover).mkdir()
    assert content(prepared("mine", raw_folder).root)["splits/2.yaml"] == b"written by hand"
    names = {path.name for path in store.root.parent.iterdir()}
    assert names == {"mine", ".tmp-mine-2-abcdefgh"}  # the latter belongs to the dataset mine-2


def test_a_failed_replacement_leaves_the_previous_store(raw_folder, prepared, monkeypatch):
    before = content(prepared("mine", raw_folder).root)
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if target.name == "mine" and not path.name.endswith("-old"):
            raise OSError("the disk is gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(CrkdError, match=r"cannot write .*mine: the disk is gone"):
        prepared("mine", raw_folder)
    root = raw_folder.parent / "data/prepared"
    assert [path.name for path in root.iterdir()] == ["mine"]
    assert content(root / "mine") == before


@pytest.mark.slow
def test_memory_use(tmp_path, rng):
    """Three scans of the size of LA's (640 × 640 × 88) are prepared within 2 GiB."""
    official = official_splits("la")
    assert official is not None
    for scan in official.test[:3]:
        folder = tmp_path / "raw" / scan
        folder.mkdir(parents=True)
        image = rng.integers(0, 255, (88, 640, 640), dtype=np.uint8)
        for name, array in (("lgemri", image), ("laendo", (image > 250).astype(np.uint8) * 255)):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{name}.nrrd"))
    options = ["--source", str(tmp_path / "raw"), "--data-root", str(tmp_path)]
    command = [sys.executable, "-m", "crkd_cli", "prepare-data", "la", *options]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)  # of this process only
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert usage.ru_maxrss < 2 * 1024**2  # in KiB on Linux
