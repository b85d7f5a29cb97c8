"""The store as a whole: same bytes from the same files, replaced at the end only, little memory."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from crkd_cli.data import prepare as preparation
from crkd_cli.data.splits import official_splits
from crkd_cli.errors import CrkdError


@pytest.fixture
def own(tmp_path, rng):
    """Three pictures, two with labels."""
    root = tmp_path / "mine"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for case in "abc":
        Image.fromarray(rng.integers(0, 200, (20, 30), dtype=np.uint8)).save(
            root / "images" / f"{case}.png"
        )
        if case != "c":
            Image.fromarray(rng.integers(0, 2, (20, 30), dtype=np.uint8)).save(
                root / "labels" / f"{case}.png"
            )
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_index_tells_what_was_read(own, prepared):
    store = prepared("mine", own)
    a, _, c = store.index.cases
    assert (a.id, a.group, a.shape, a.source) == ("a", "a", (20, 30), "images/a.png")
    assert a.sha256 == hashlib.sha256((own / "images/a.png").read_bytes()).hexdigest()
    assert a.label_sha256 == hashlib.sha256(store.label("a").tobytes()).hexdigest()
    raw = np.asarray(Image.open(own / "images/a.png")).astype(float)
    expected = {"min": raw.min(), "max": raw.max(), "mean": raw.mean(), "std": raw.std()}
    assert a.intensity == pytest.approx(expected)
    assert not c.labeled
    assert not (store.root / "labels/c.npy").exists()
    assert "1 of 3 cases have no label: they are unlabeled" in store.index.notes


def test_same_files_same_bytes_splits_kept(own, prepared):
    store = prepared("mine", own)
    first = content(store.root)
    assert sorted(first) == [
        "images/a.npy",
        "images/b.npy",
        "images/c.npy",
        "index.json",
        "labels/a.npy",
        "labels/b.npy",
    ]
    (store.root / "splits").mkdir()
    (store.root / "splits/2.yaml").write_text("made by hand")
    second = content(prepared("mine", own).root)
    assert second.pop("splits/2.yaml") == b"made by hand"
    assert second == first
    assert [path.name for path in store.root.parent.iterdir()] == ["mine"]


def test_the_digest_tells_other_images_and_labels(own, prepared):
    seen = [prepared("mine", own).digest]
    Image.open(own / "labels/a.png").save(
        own / "labels/a.tif"
    )  # another file, the same class numbers
    (own / "labels/a.png").unlink()
    assert prepared("mine", own).digest == seen[0]
    for file in ("labels/a.tif", "images/c.png"):
        Image.fromarray(np.eye(20, 30, dtype=np.uint8)).save(own / file)
        seen.append(prepared("mine", own).digest)
    seen.append(prepared("mine", own, spacing="2").digest)
    assert len(set(seen)) == 4


def test_a_renewed_store_forgets_removed_cases(own, prepared):
    prepared("mine", own)
    (own / "images/c.png").unlink()
    store = prepared("mine", own)
    assert list(store.cases) == ["a", "b"]
    assert not (store.root / "images/c.npy").exists()


def test_interrupted_preparation_leaves_the_old_store(own, prepared, monkeypatch):
    before = content(prepared("mine", own).root)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "_publish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepared("mine", own)
    root = own.parent / "data/prepared"
    assert [path.name for path in root.iterdir()] == ["mine"]
    assert content(root / "mine") == before


def test_what_a_kill_left_is_mended_by_the_next_preparation(own, prepared):
    """Killed while cases were written, or while the new store took the old one's place."""
    store = prepared("mine", own)
    (store.root / "splits").mkdir()
    (store.root / "splits/2.yaml").write_text("made by hand")
    store.root.rename(store.root.with_name(".tmp-mine-old"))
    for left in (".tmp-mine-abcdefgh", ".tmp-mine-2-abcdefgh"):
        store.root.with_name(left).mkdir()
    assert content(prepared("mine", own).root)["splits/2.yaml"] == b"made by hand"
    assert {path.name for path in store.root.parent.iterdir()} == {
        "mine",
        ".tmp-mine-2-abcdefgh",
    }  # the set mine-2 is another


def test_a_store_that_cannot_take_its_place_leaves_the_old_one(own, prepared, monkeypatch):
    before = content(prepared("mine", own).root)
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if target.name == "mine" and not path.name.endswith("-old"):
            raise OSError("the disk is gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(CrkdError, match=r"cannot write .*mine: the disk is gone"):
        prepared("mine", own)
    root = own.parent / "data/prepared"
    assert [path.name for path in root.iterdir()] == ["mine"]
    assert content(root / "mine") == before


@pytest.mark.slow
def test_one_case_in_memory_at_a_time(tmp_path, rng):
    """Three raw scans of the size of LA's (640 × 640 × 88) within 2 GiB of peak memory."""
    facts = official_splits("la")
    assert facts is not None
    for scan in facts.test[:3]:
        folder = tmp_path / "raw" / scan
        folder.mkdir(parents=True)
        image = rng.integers(0, 255, (88, 640, 640), dtype=np.uint8)
        for name, array in (("lgemri", image), ("laendo", (image > 250).astype(np.uint8) * 255)):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{name}.nrrd"))
    command = [
        sys.executable,
        "-m",
        "crkd_cli",
        "prepare-data",
        "la",
        "--source",
        tmp_path / "raw",
        "--data-root",
        tmp_path,
    ]
    process = subprocess.Popen(list(map(str, command)))
    _, status, usage = os.wait4(process.pid, 0)  # of this child alone
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert usage.ru_maxrss < 2 * 1024**2  # in KiB on Linux
