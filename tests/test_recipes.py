"""Pages whose blocks are scripts: they run as they are written, on synthetic scans."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from crkd_cli.runtime.checkpoint import load_checkpoint
from tests.newcomer import make_program
from tests.test_readme import CHECKOUT, SCRIPTED
from tests.training.processes import wait_for_steps

STEPS = 60
SCONTROL = '#!/bin/sh\necho "$@" >> scontrol.txt\n'


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [block for block_language, block in found if block_language == language]


def start(
    script: str, folder: Path, program: Path, *arguments: str, stderr: int | None = None
) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PATH": f"{program / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(program),
        "HOME": str(folder),
        "SLURM_JOB_ID": "17",
    }
    environment.pop("CRKD_DATA", None)
    command = ["bash", "-c", script, "script", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stderr=stderr, text=True, start_new_session=True
    )


def shell(script: str, folder: Path, program: Path) -> int:
    return start(script, folder, program).wait(timeout=600)


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
    """Slurm signals only the script before the time limit, and all processes on preemption."""
    program = make_program(tmp_path / "program", tmp_path)
    (program / "bin" / "scontrol").write_text(SCONTROL)
    (program / "bin" / "scontrol").chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    prepare = "crkd prepare-data phantom && crkd make-splits phantom --labeled 3"
    assert shell(prepare, folder, program) == 0
    (script,) = blocks(CHECKOUT / "docs" / "recipes" / "cluster.md", "bash")
    options = ["--dataset", "phantom", "--labeled", "3", "--method", "supervised"]
    options += ["--set", f"train.steps={STEPS}"]
    run = folder / "runs" / "phantom-supervised-3"

    def submit() -> subprocess.Popen[str]:
        return start(script, folder, program, *options, stderr=subprocess.PIPE)

    job = submit()
    wait_for_steps(run, 1)
    job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=120)
    assert job.returncode == 138
    assert (folder / "scontrol.txt").read_text() == "requeue 17\n"
    first = load_checkpoint(run / "last.pth").step
    assert 0 < first < STEPS

    job = submit()
    wait_for_steps(run, len((run / "log.jsonl").read_text().splitlines()) + 1)
    os.killpg(job.pid, signal.SIGTERM)
    _, errors = job.communicate(timeout=120)  # until crkd has ended, too
    assert "stopped by SIGTERM" in errors
    assert first < load_checkpoint(run / "last.pth").step < STEPS

    begin = time.time()
    job = submit()
    job.communicate(timeout=120)
    assert job.returncode == 0
    assert load_checkpoint(run / "last.pth").step == STEPS
    assert (run / "last.pth").stat().st_mtime > begin
    assert (folder / "scontrol.txt").read_text() == "requeue 17\n"  # not again: Slurm does
