"""One writer per folder: refusals, and leftovers that only dead processes leave."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crkd_cli.errors import UsageError
from crkd_cli.locks import only_writer
from crkd_cli.paths import atomic_write, output_folder, replace_folder, temporary_folder

# Holds a folder and leaves a temporary file in it until it is killed.
HOLDER = """
import sys, time
from pathlib import Path
from crkd_cli.paths import atomic_write, output_folder, temporary_folder
target = Path(sys.argv[2])
if sys.argv[1] == "output":
    with output_folder(target, "--out", "below"), atomic_write(target / "below" / "mask.png"):
        print("ready", flush=True)
        time.sleep(60)
else:
    with temporary_folder(target) as folder:
        (folder / "half").write_text("a result")
        print("ready", flush=True)
        time.sleep(60)
"""


def hold(kind: str, target: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, kind, str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


def test_an_output_folder_has_one_writer(tmp_path):
    out = tmp_path / "masks"
    process = hold("output", out)
    temporary = [file for file in (out / "below").iterdir() if file.name.startswith(".tmp-")]
    assert len(temporary) == 1
    message = rf"another process is writing to {out}; wait .* or give another folder with --out"
    with pytest.raises(UsageError, match=message), output_folder(out, "--out", "below"):
        pass
    assert temporary[0].exists()  # it belongs to a live process

    kill(process)
    (out / ".tmp-notes").touch()  # not a temporary file of ours
    with output_folder(out, "--out", "below"):
        assert not temporary[0].exists()
        with atomic_write(out / "below" / "mask.png") as file:
            file.write_text("a mask")
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    assert names == [".tmp-notes", "below", "below/mask.png"]


def test_a_store_has_one_writer(tmp_path):
    target = tmp_path / "prepared" / "mine"
    process = hold("folder", target)
    message = rf"another process is writing to {target}; wait until it ends, then rerun"
    with pytest.raises(UsageError, match=message), temporary_folder(target):
        pass
    assert list(target.parent.glob(".tmp-mine-*/half"))
    with temporary_folder(target.with_name("other")) as folder:  # another store is free
        replace_folder(folder, target.with_name("other"))

    kill(process)
    with temporary_folder(target) as folder:
        assert not list(target.parent.glob(".tmp-mine-*/half"))
        replace_folder(folder, target)
    assert sorted(path.name for path in target.parent.iterdir()) == ["mine", "other"]


@pytest.mark.parametrize("other", [".tmp-mine-abcd-old", ".tmp-mine-2-abcdefgh", ".tmp-min-old"])
def test_folders_of_other_datasets_are_kept(tmp_path, other):
    (tmp_path / other).mkdir()  # such as the previous store of the dataset mine-abcd
    with temporary_folder(tmp_path / "mine"):
        pass
    assert (tmp_path / other).is_dir()


def test_where_nothing_can_be_written_no_lock_is_needed():
    if not Path("/sys/kernel").is_dir():
        pytest.skip("needs a folder where not even root can create files")
    with only_writer(Path("/sys/kernel/mine")):
        pass
