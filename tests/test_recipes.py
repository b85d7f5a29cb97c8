"""Pages whose blocks are scripts: they run as they are written, on synthetic scans."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from crkd_cli.runtime.checkpoint import load_checkpoint
from tests.newcomer import make_program
from tests.test_readme import CHECKOUT, SCRIPTED

# Stands in for Slurm: the first training is interrupted, as before the time limit.
SRUN = """#!/bin/bash
"$@" & training=$!
if [ ! -e interrupted ]; then
    touch interrupted
    until grep -qs '"step":' runs/*/log.jsonl; do
        kill -0 $training || break
        sleep 0.1
    done
    kill -USR1 $training
fi
wait $training
"""
STEPS = 60
SCONTROL = '#!/bin/sh\necho "$@" >> scontrol.txt\n'


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [block for block_language, block in found if block_language == language]


def shell(script: str, folder: Path, program: Path, *arguments: str) -> int:
    environment = {
        **os.environ,
        "PATH": f"{program / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(program),
        "HOME": str(folder),
        "SLURM_JOB_ID": "17",
    }
    environment.pop("CRKD_DATA", None)
    command = ["bash", "-c", script, "script", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, timeout=600).returncode


@pytest.mark.slow
@pytest.mark.parametrize("page", SCRIPTED, ids=lambda page: page.stem)
def test_scripted_page_runs_as_written(page: Path, tmp_path: Path) -> None:
    program = make_program(tmp_path / "program", tmp_path)
    folder = tmp_path / "work"
    folder.mkdir()
    for block in blocks(page, ""):
        assert shell(f"set -e\n{block}", folder, program) == 0, block
    masks = folder / "new-scans-masks"
    scans = {scan.name for scan in (folder / "new-scans").iterdir()}
    assert len(scans) == 10
    assert scans == {mask.name for mask in masks.glob("*.nii")}
    assert len(list((masks / "overlays").glob("*.png"))) == len(scans)


@pytest.mark.slow
def test_the_slurm_script_requeues_an_interrupted_run_which_resumes(tmp_path: Path) -> None:
    program = make_program(tmp_path / "program", tmp_path)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (program / "bin" / name).write_text(text)
        (program / "bin" / name).chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    prepare = "crkd prepare-data phantom && crkd make-splits phantom --labeled 3"
    assert shell(prepare, folder, program) == 0
    (script,) = blocks(CHECKOUT / "docs" / "recipes" / "cluster.md", "bash")
    options = ["--dataset", "phantom", "--labeled", "3", "--method", "supervised"]
    options += ["--set", f"train.steps={STEPS}"]

    assert shell(script, folder, program, *options) == 138
    assert (folder / "scontrol.txt").read_text() == "requeue 17\n"
    last = folder / "runs" / "phantom-supervised-3" / "last.pth"
    step = load_checkpoint(last).step
    assert 0 < step < STEPS

    begin = time.time()
    assert shell(script, folder, program, *options) == 0
    assert load_checkpoint(last).step == STEPS
    assert last.stat().st_mtime > begin
    assert (folder / "scontrol.txt").read_text() == "requeue 17\n"  # not again
