"""Foreign files do no harm: crashes, endless reading, memory, other files, pipes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from crkd_cli.data.raw import isolation, limits
from crkd_cli.data.raw.formats import probe, read_image, read_label
from crkd_cli.data.raw.isolation import IsolatedProcessError, call_isolated
from crkd_cli.data.raw.limits import available_memory
from crkd_cli.errors import CrkdError

MODULE = """
import ctypes, os, sys, time
import numpy as np
from crkd_cli.errors import CrkdError

def crash(path):
    ctypes.string_at(0)

def hang(path):
    ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock, as a library that loops

def fill(path):
    return (np.ones(1 << 50),)

def noise(path):
    os.write(1, b"a library says something")
    print("more")
    return (np.arange(6.0).reshape(2, 3), "text", None, np.array([True]))

def wrong(path):
    raise CrkdError(f"{path} is wrong")

def number(path):
    return (os.getpid(),)
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    """call("crash") calls a function of MODULE in the other process."""
    (tmp_path / "foreign_library.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setattr(isolation, "_PROCESS", isolation._Process())
    monkeypatch.syspath_prepend(tmp_path)
    import foreign_library

    yield lambda name: call_isolated(getattr(foreign_library, name), tmp_path)
    isolation._PROCESS.close()
    sys.modules.pop("foreign_library")


def test_results_and_errors_come_back(call, tmp_path):
    array, text, nothing, flags = call("noise")
    np.testing.assert_array_equal(array, np.arange(6.0).reshape(2, 3))
    assert (text, nothing, flags.dtype, flags.tolist()) == ("text", None, bool, [True])
    with pytest.raises(CrkdError, match=f"{tmp_path} is wrong"):
        call("wrong")
    with pytest.raises(MemoryError):
        call("fill")
    assert call("number") == call("number")  # none of these ended it


def test_a_crash_ends_one_call(call):
    with pytest.raises(IsolatedProcessError, match="reading it crashes"):
        call("crash")
    before = call("number")[0]
    os.kill(before, signal.SIGKILL)  # between two calls
    while isolation._PROCESS._process.poll() is None:
        time.sleep(0.01)
    assert call("number")[0] != before


@pytest.mark.slow
def test_reading_that_does_not_end(call, monkeypatch):
    monkeypatch.setattr(isolation, "BASE_SECONDS", 0.3)
    with pytest.raises(IsolatedProcessError, match="reading it takes too long"):
        call("hang")


def test_a_file_that_takes_too_long_is_named(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["image"] = np.ones((2, 3, 4))
    monkeypatch.setattr(isolation, "_PROCESS", isolation._Process())
    with monkeypatch.context() as patch:
        patch.setattr(isolation, "BASE_SECONDS", 0.001)  # h5py is not even imported by then
        with pytest.raises(CrkdError, match=r"x\.h5 cannot be read, .*: reading it takes too long"):
            read_image(tmp_path / "x.h5")
    assert read_image(tmp_path / "x.h5").size == (2, 3, 4)
    isolation._PROCESS.close()


def test_threads_take_turns(call):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(call("noise")[0].sum())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [15.0] * 8


@pytest.mark.slow
@pytest.mark.parametrize("end", ["pass", "os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_process_is_left_behind(tmp_path, end):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["image"] = np.ones((2, 3, 4))
    program = f"""
import os, signal
from pathlib import Path
from crkd_cli.data.raw import isolation, limits
from crkd_cli.data.raw.formats import probe
probe(Path({str(tmp_path / "x.h5")!r}))
print(isolation._PROCESS._process.pid, flush=True)
os.kill(isolation._PROCESS._process.pid, signal.SIGINT)  # as Ctrl-C: ignored
probe(Path({str(tmp_path / "x.h5")!r}))
print(isolation._PROCESS._process.pid, flush=True)
{end}
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True)
    first, second = map(int, result.stdout.split())
    assert (first, result.stderr) == (second, "")
    deadline = time.monotonic() + 10
    while Path(f"/proc/{first}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{first}").exists()


@pytest.mark.slow
def test_files_of_the_current_folder_are_not_imported(tmp_path):
    (tmp_path / "h5py.py").write_text("raise SystemExit('this was run')")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["image"] = np.ones((2, 3, 4))
    program = (
        "from pathlib import Path; from crkd_cli.data.raw.formats import probe; "
        f"print(probe(Path({str(tmp_path / 'x.h5')!r})))"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.stdout.startswith("Layout(channels=1, size=("), result.stderr


@pytest.mark.parametrize("name", ["x.png", "x.nii", "x.nii.gz", "x.nrrd", "x.mha", "x.h5", "x.tif"])
def test_pipes_and_folders_are_not_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(CrkdError, match=f"{name} is a pipe or device, not a regular file"):
        read_image(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(CrkdError, match=f"{name} is a folder, not a regular file"):
        probe(tmp_path / name)


def test_devices(tmp_path):
    (tmp_path / "x.nii").symlink_to("/dev/zero")
    with pytest.raises(CrkdError, match=r"x\.nii is a pipe or device"):
        read_image(tmp_path / "x.nii")


def hard_link_to_elsewhere(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["data"] = np.ones((2, 3, 4))
    file["image"] = h5py.ExternalLink("other.h5", "/data")


def soft_link(file, folder):
    file["image"] = h5py.SoftLink("/data")


def external_storage(file, folder):
    (folder / "secret").write_bytes(bytes(192))
    external = [(str(folder / "secret"), 0, 192)]
    file.create_dataset("image", (2, 3, 4), "f8", external=external)


def virtual(file, folder):
    layout = h5py.VirtualLayout((2, 3, 4), "f8")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "data", (2, 3, 4))
    file.create_virtual_dataset("image", layout)


def never_written(file, folder):
    file.create_dataset("image", (2, 3, 4), "f4")


def huge(file, folder):
    file.create_dataset("image", (10_000,) * 3, "u1", chunks=(10, 10, 10))
    file["image"][0, 0, 0] = 1


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (hard_link_to_elsewhere, "has a link in place of 'image'"),
        (soft_link, "has a link in place of 'image'"),
        (external_storage, "refers to other files in 'image'"),
        (virtual, "refers to other files in 'image'"),
        (never_written, "has an array 'image' that was never written"),
        (huge, r"is not a plausible image: it declares 1\.0 TB of data, the file has"),
    ],
)
def test_h5_files_contain_their_arrays_themselves(tmp_path, fill, message):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        fill(file, tmp_path)
    with pytest.raises(CrkdError, match=rf"x\.h5 {message}"):
        read_image(tmp_path / "x.h5")


def test_h5_label_behind_a_link(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["image"] = np.ones((2, 3, 4))
        file["label"] = h5py.ExternalLink("pipe.h5", "/data")
    assert probe(tmp_path / "x.h5").has_label
    with pytest.raises(CrkdError, match=r"x\.h5 has a link in place of 'label'"):
        read_label(tmp_path / "x.h5")


@pytest.mark.slow
def test_a_fax_of_many_pages(tmp_path):
    """A TIFF of 2 kB per page expands to gigabytes."""
    page = Image.new("1", (12_000, 12_000))
    page.save(tmp_path / "x.tif", compression="group4", save_all=True, append_images=[page])
    with pytest.raises(CrkdError, match=r"x\.tif is not a plausible image: it declares 1\.2 GB"):
        read_image(tmp_path / "x.tif")


def test_more_than_the_memory(tmp_path, monkeypatch):
    assert 1 << 20 < (available_memory() or 0) < 1 << 50
    monkeypatch.setattr(limits, "available_memory", lambda: 100)
    Image.new("1", (5000, 5000)).save(tmp_path / "x.png")
    with pytest.raises(
        CrkdError, match=r"x\.png does not fit into memory: .* 100 bytes of memory are free; cut"
    ):
        read_image(tmp_path / "x.png")
