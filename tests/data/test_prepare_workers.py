"""Preparation in several processes: the same store and errors as in one, and no leftovers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crkd_cli.cli.bars import progress
from crkd_cli.data.prepare import prepare
from crkd_cli.data.sources.folder import Folder


@pytest.fixture
def raw_folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    root = tmp_path / "mine"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(6):
        image = rng.integers(0, 200, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / f"images/{number}.png")
        label = rng.integers(0, number // 3 + 2, (40, 50), dtype=np.uint8)
        Image.fromarray(label).save(root / f"labels/{number}.png")
    return root


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_the_store_and_the_report_do_not_depend_on_the_workers(raw_folder, tmp_path):
    reports, stores = [], []
    for workers in (1, 2):
        store = tmp_path / f"prepared-{workers}" / "mine"
        report = prepare("mine", Folder(), raw_folder, store, progress, workers=workers)
        reports.append(report.tree())
        stores.append(content(store))
    assert len(stores[0]) == 2 + 6 + 3 * 6  # index and description, images, arrays of labels
    assert stores[0] == stores[1]
    assert reports[0] == reports[1]


@pytest.mark.slow
def test_errors_do_not_depend_on_the_workers(raw_folder, tmp_path):
    (raw_folder / "images/1.png").write_bytes(b"")
    Image.new("L", (7, 7)).save(raw_folder / "labels/4.png")
    reports = []
    for workers in (1, 2):
        store = tmp_path / "prepared" / "mine"
        report = prepare("mine", Folder(), raw_folder, store, progress, workers=workers)
        reports.append(report.tree())
        assert [finding.where for finding in report.errors] == ["1", "4"]
        assert list(store.parent.iterdir()) == []
    assert reports[0] == reports[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, ""), (signal.SIGHUP, 129, "")],
)
def test_a_signal_ends_all_processes_and_leaves_no_folder(tmp_path, rng, number, code, message):
    """It is sent to the whole group, as a terminal does, or to the first process alone."""
    root = tmp_path / "mine"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    image = rng.integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    for case in range(40):
        Image.fromarray(image).save(root / f"images/{case}.jpg")
        Image.fromarray(image[..., 0] // 128).save(root / f"labels/{case}.png", compress_level=1)
    options = ["--source", root, "--data-root", tmp_path / "data", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "crkd_cli", "prepare-data", "mine", *map(str, options)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Shells let their background jobs ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    prepared = tmp_path / "data/prepared"
    while not list(prepared.glob(".tmp-*/images/*")):
        assert process.poll() is None
        time.sleep(0.02)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)  # ends when all processes have closed stderr
    assert process.returncode == code
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1:] == ([message] if message else err.splitlines()[-1:])
    assert list(prepared.glob(".tmp-*")) == []
