"""Output that cannot be written: the work is done all the same, and the exit code says so."""

import fcntl
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from crkd_cli.config import Frame

CRKD = f"{sys.executable} -m crkd_cli"
SPACE, CLOSED = "No space left on device", "it is closed"


def shell(line, **variables):
    """Run `line` in a shell, where crkd is the command, with variables: (exit code, stderr)."""
    environment = {**os.environ, **variables}
    result = subprocess.run(
        ["sh", "-c", line.replace("crkd", CRKD, 1)],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        timeout=120,
    )
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    ("line", "code", "stderr"),
    [
        ("crkd --version > /dev/full", 1, f"error: cannot write to stdout: {SPACE}\n"),
        ("crkd --version >&- <&-", 1, f"error: cannot write to stdout: {CLOSED}\n"),
        ("crkd make-splits nowhere >&- 2>&-", 2, ""),  # that of the missing store
        ("crkd train --stop-after x > /dev/full 2> /dev/full", 2, ""),
    ],
)
def test_the_exit_code_is_that_of_the_result(line, code, stderr):
    assert shell(line) == (code, stderr)


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["> /dev/full", ">&-"])
def test_help_that_nobody_sees(streams):
    code, stderr = shell(f"crkd --help {streams}")
    assert code == 1
    assert stderr.startswith("error: cannot write to stdout: ")
    assert stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1251", "latin-1", "ascii:strict"])
def test_characters_that_the_encoding_lacks(encoding):
    """The help contains "×" and boxes."""
    assert shell("crkd methods", PYTHONIOENCODING=encoding) == (0, "")
    code, stderr = shell("crkd evaluate '→\x1b[2J'", PYTHONIOENCODING=encoding)
    assert code == 1
    assert "\x1b" not in stderr


@pytest.fixture
def ready(make_store, make_checkpoint, tmp_path):
    """The command line that evaluates a small checkpoint, and the folder of its results."""
    store = make_store(groups=6)
    file = make_checkpoint(store.spec, Frame(resize=(32, 32)), test=("p00", "p01", "p02"))
    folder = tmp_path / "scores"
    return f"crkd evaluate {file} --data-root {tmp_path / 'data'} --out {folder}", folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("streams", "code"),
    [
        ("2> /dev/full", 0),
        ("2>&-", 0),
        ("2>&- <&-", 0),
        ("> /dev/full", 1),
        (">&-", 1),
        (">&- 2>&- <&-", 1),
        ("> /dev/full --quiet", 0),  # nothing to print
        ("--json > /dev/full 2> /dev/full", 1),
    ],
)
def test_the_results_are_written_to_their_files(ready, streams, code):
    line, folder = ready
    assert shell(f"{line} {streams}")[0] == code
    assert json.loads((folder / "summary.json").read_text())["part"] == "test"
    assert (folder / "cases.csv").read_text().count("\n") == 4


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["1", "2", "1 and 2"])
def test_a_reader_that_leaves(ready, stream):
    line, folder = ready
    reader, writer = os.pipe()
    os.close(reader)
    command = line.replace("crkd", CRKD, 1).split()
    chosen = {"stdout": writer if "1" in stream else None, "stderr": writer if "2" in stream else 2}
    result = subprocess.run(command, **chosen, check=False)
    os.close(writer)
    assert result.returncode == (1 if "1" in stream else 0)
    assert (folder / "summary.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("ignored", ["", "trap '' HUP; "])
def test_a_terminal_that_vanishes(ready, ignored):
    """The progress bar then meets EIO; SIGHUP, which comes with it, is ignored or not sent."""
    line, folder = ready
    master, terminal = pty.openpty()

    def lead() -> None:
        if ignored:  # a session of its own, whose controlling terminal this is
            os.setsid()
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    command = ["sh", "-c", f"{ignored}exec {line.replace('crkd', CRKD, 1)}"]
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, preexec_fn=lead
    )
    os.close(terminal)
    os.read(master, 1)
    os.close(master)
    assert process.wait(timeout=120) == 1  # the table could not be shown
    assert (folder / "summary.json").is_file()


@pytest.mark.parametrize(
    "variables",
    [{"COLUMNS": "0", "TERMINAL_WIDTH": "abc"}, {"COLUMNS": "-1", "TERMINAL_WIDTH": "0"}],
)
@pytest.mark.slow
def test_a_strange_environment(variables, tmp_path):
    strange = {**variables, "TERM": "", "LANG": "C", "LC_ALL": "C", "LINES": "x", "HOME": ""}
    environment = {**strange, "PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd())}
    result = subprocess.run(
        [*CRKD.split(), "--help"], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "prepare-data" in result.stdout
    result = subprocess.run(
        [*CRKD.split(), "train", "--stop-after", "x"], env=environment, capture_output=True
    )
    assert result.returncode == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "mkdir gone; cd gone; rmdir ../gone; crkd predict x",
            "the current folder no longer exists",
        ),
        ("CRKD_DATA=/etc/passwd crkd make-splits toy", "/etc/passwd is a file; give a folder to"),
    ],
)
def test_a_place_that_cannot_be_used(tmp_path, monkeypatch, line, message):
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    code, stderr = shell(line)
    assert code == 1
    assert stderr.startswith(f"error: {message}")
    assert stderr.count("\n") == 1


@pytest.mark.slow
def test_a_broken_environment_of_matplotlib(ready, tmp_path):
    line, folder = ready
    broken = {"MPLBACKEND": "nonsense", "MPLCONFIGDIR": "/dev/null", "HOME": "/nonexistent"}
    assert shell(line, **broken)[0] == 0
    report = f"crkd compare {folder} --report {tmp_path / 'report'} --data-root {tmp_path / 'data'}"
    code, stderr = shell(report, **broken)
    assert code == 0, stderr
