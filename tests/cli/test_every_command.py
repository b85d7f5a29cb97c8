"""What all commands share: help, completion, tracebacks on request, full or read-only disks."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import typer
import yaml
from PIL import Image

from crkd_cli.cli.console import command
from crkd_cli.config import Frame
from crkd_cli.text import printable

WORKING = [
    *("prepare-data", "make-splits", "train", "evaluate", "compare", "postprocess", "predict"),
    *("suggest", "export"),
]
COMMANDS = ["doctor", *WORKING[:2], "methods", *WORKING[2:]]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_an_example_and_the_arguments(cli, command, monkeypatch):
    """A terminal of 80 × 24 shows them on its first page."""
    monkeypatch.setenv("COLUMNS", "80")
    result = cli(command, "--help")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    details = result.stdout.rpartition("╯")[2].splitlines()
    for line, following in itertools.pairwise(map(str.rstrip, details)):
        if line and following:  # whose first word did not fit at the end of the line before
            assert len(line) + 1 + len(following.split()[0]) > 79
    (usage,) = [number for number, line in enumerate(lines) if " Usage: " in line]
    (example,) = [number for number, line in enumerate(lines) if f"Example: crkd {command}" in line]
    summary = [line.strip() for line in lines[usage + 1 : example] if line.strip()]
    assert len(summary) == 1  # sentence
    assert summary[0].endswith(".")
    arguments = "Data" if command == "train" else "Arguments"
    panels = [number for number, line in enumerate(lines) if line.startswith(f"╭─ {arguments} ─")]
    if command not in ("doctor", "methods"):
        (first,) = panels
        last = next(number for number in range(first, len(lines)) if lines[number][0] == "╰")
        assert example < first < last < 24


def test_the_list_of_commands_has_a_line_for_each(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli("--help").stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("╭─ Commands ─"))
    listed = [line[2:].split()[0] for line in lines[first + 1 :] if line.startswith("│")]
    assert listed == COMMANDS
    assert any(line.startswith(" Example: crkd prepare-data ") for line in lines[:first])


@pytest.mark.parametrize("command", ["doctor", *WORKING])
def test_help_has_groups(cli, command):
    result = cli(command, "--help")
    panels = [line.strip("╭╮─ ") for line in result.stdout.splitlines() if line.startswith("╭")]
    assert {"Options", "Output"} < set(panels), panels
    assert all(option in result.stdout for option in ("--quiet", "--verbose"))


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("crkd ev", ["evaluate"]),
        ("crkd train --lab", ["--labeled"]),
        ("crkd evaluate --protocol ", ["strict", "paper"]),
        ("crkd ", COMMANDS),
    ],
)
def test_completion_in_bash(typed, expected):
    """As the script that `crkd --install-completion` writes asks for it."""
    program = "import sys; sys.argv = ['crkd']; from crkd_cli.cli import app; app(prog_name='crkd')"
    words = {
        "_CRKD_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(typed.count(" ")),
    }
    result = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **words}, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout.split()) == (0, expected)


@pytest.mark.parametrize(
    "args",
    [
        ["prepare-data", "isic2017"],
        ["make-splits", "nowhere"],
        ["train", "--dataset", "nowhere"],
        ["evaluate", "nowhere.pth"],
        ["compare", "nowhere"],
        ["postprocess", "nowhere.pth"],
        ["predict", "nowhere", "--checkpoint", "nowhere.pth"],
        ["suggest", "nowhere", "--checkpoint", "nowhere.pth"],
        ["export", "nowhere.pth"],
    ],
    ids=WORKING,
)
def test_tracebacks_only_with_verbose(cli, args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain, verbose = cli(*args), cli(*args, "-v")
    assert plain.exit_code == verbose.exit_code in (1, 2)
    assert "Traceback" not in plain.output
    assert "Traceback" in verbose.stderr
    assert plain.stderr.splitlines()[-1] == verbose.stderr.splitlines()[-1]
    assert plain.stderr.splitlines()[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "work",
    [
        lambda: np.empty(1 << 50),
        lambda: torch.empty(1 << 50),
        lambda: throw(torch.OutOfMemoryError("CUDA out of memory")),
    ],
)
def test_out_of_memory_is_one_line(capsys, work):
    """Pebibytes are more than any process can address."""
    for verbose in (False, True):
        with pytest.raises(typer.Exit) as end:
            command(lambda verbose: work())(verbose=verbose)
        assert end.value.exit_code == 1
        *trace, line = capsys.readouterr().err.splitlines()
        assert line.startswith("error: not enough memory; free some")
        assert trace[:1] == (["Traceback (most recent call last):"] if verbose else [])


def throw(error):
    raise error


def test_an_error_of_the_system_is_one_line(capsys, tmp_path):
    for name in ("no", "\x1b[2J\n", "\udce9"):
        with pytest.raises(typer.Exit) as end:
            command(lambda name=name: (tmp_path / name).stat())()
        assert end.value.exit_code == 1
        file = printable(tmp_path / name)
        assert capsys.readouterr().err == f"error: {file}: No such file or directory\n"


def test_other_torch_errors_are_not_caught():
    with pytest.raises(RuntimeError, match="size of tensor"):
        command(lambda: torch.ones(2) + torch.ones(3))()


@pytest.fixture
def disk(tmp_path):
    """disk("ro"): a folder on a disk of its own of 64 KiB, mounted so."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(mode):
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size=64k,{mode}", "none", folder], capture_output=True
        ).returncode:
            pytest.skip("a disk cannot be mounted here")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


@pytest.fixture
def scene(make_store, make_checkpoint, write_evaluation, tmp_path, rng):
    """Return the files that the command lines below name, by placeholder."""
    store = make_store(groups=6)
    solid = make_store("solid", dims=3, groups=1).spec
    flat = make_checkpoint(store.spec, Frame(resize=(32, 32)), test=("p00",))
    Image.fromarray(rng.integers(0, 255, (33, 47), dtype=np.uint8)).save(tmp_path / "a.png")
    volume = sitk.GetImageFromArray(rng.normal(size=(20, 20, 20)).astype(np.float32))
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
        sitk.WriteImage(volume, str(tmp_path / f"b{suffix}"))
    config = {
        "data": {
            "name": "toy",
            "frame": {"resize": [32, 32]},
            "labeled_batch_size": 1,
            "unlabeled_batch_size": 1,
        },
        "model": {"name": "unet", "widths": [4] * 5},
        "train": {"steps": 1},
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(config))
    split = {"dataset": "toy", "name": "x", "train": ["p00", "p01"], "labeled": ["p00"]}
    (tmp_path / "split.yaml").write_text(json.dumps(split))
    patch = Frame(patch=(16, 16, 16))
    patients = {"a": "a", "b": "b", "c": "c"}
    return {
        "flat": flat,
        "solid": make_checkpoint(solid, patch, path="runs/solid/last.pth"),
        "scored": write_evaluation("scored", rng.random((3, 2, 2)), patients),
        "root": tmp_path / "data",
        "here": tmp_path,
    }


WRITING = pytest.mark.parametrize(
    ("line", "what"),
    [
        ("prepare-data phantom --data-root {disk}", "raw/phantom"),
        ("make-splits toy --labeled 2 --data-root {root} --out {disk}/x.yaml", "x.yaml"),
        (
            "train --config {here}/toy.yaml --split {here}/split.yaml --data-root {root} "
            "--out {disk}/run",
            "config.yaml",
        ),
        ("evaluate {flat} --data-root {root} --out {disk}/scores", "summary.json"),
        ("compare {scored} --out {disk}/table", "comparison.json"),
        ("predict {here}/a.png --checkpoint {flat} --out {disk}/masks", "a.png"),
        ("predict {here}/a.png --checkpoint {flat} --out {disk}/masks --overlay", "overlays/a.png"),
        ("predict {here}/b.nii --checkpoint {solid} --out {disk}/masks", "b.nii"),
        ("predict {here}/b.nii.gz --checkpoint {solid} --out {disk}/masks", "b.nii.gz"),
        ("predict {here}/b.nrrd --checkpoint {solid} --out {disk}/masks", "b.nrrd"),
        ("predict {here}/b.mha --checkpoint {solid} --out {disk}/masks", "b.mha"),
        (
            "predict {here}/b.nii.gz --checkpoint {solid} --out {disk}/masks --probabilities",
            "probabilities/b.npz",
        ),
    ],
)


@WRITING
def test_a_full_disk_is_reported_and_leaves_no_partial_file(cli, scene, disk, line, what):
    folder = disk("rw")
    with (folder / "filler").open("wb", buffering=0) as file:
        assert file.write(bytes(1 << 20)) == 64 << 10  # all that fits
    result = cli(*line.format(disk=folder, **scene).split())
    assert result.exit_code == 1, result.output
    last = result.stderr.splitlines()[-1]
    assert f"cannot write {folder}" in last
    assert f"/{what}: " in last
    assert "No space left on device" in last or "is the disk full?" in last
    assert "Traceback" not in result.output
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert left == {"filler"}


@WRITING
def test_a_read_only_folder_is_reported(cli, scene, disk, line, what):
    folder = disk("ro")
    result = cli(*line.format(disk=folder, **scene).split())
    assert result.exit_code == 1, result.output
    (error,) = [
        line for line in result.stderr.splitlines() if line.startswith("error: cannot write")
    ]
    assert f" {folder}" in error
    assert "Read-only file system" in error
    assert "Traceback" not in result.output
