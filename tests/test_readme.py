"""The documentation tells the truth: every command line in it is understood, and runs; nothing is missing.

Run means: word for word and in order, as a newcomer with a few real cases would. What makes a run of hours one of seconds lies
outside the line: the package is the checkout's own, beside copies of configs/ (short and narrow) and splits/ (the cases that are
here). A line that states its own length begins near its end.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageOps
from typer.testing import CliRunner

from crkd_cli import paths
from crkd_cli.data.raw import formats
from crkd_cli.methods import METHODS
from crkd_cli.runtime import checkpoint as checkpoints

CHECKOUT = Path(__file__).parents[1]
PAGES = [
    CHECKOUT / "README.md",
    CHECKOUT / "CONTRIBUTING.md",
    *sorted((CHECKOUT / "docs").glob("**/*.md")),
]
FENCE = re.compile(r"^```.*?\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def command_lines(*pages: Path) -> list[str]:
    """Lines of code blocks that run crkd, in order, without comments and prompts, continued lines joined."""
    blocks = [block for page in pages for block in FENCE.findall(page.read_text(encoding="utf-8"))]
    lines = [
        line.strip().removeprefix("$ ")
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [line for line in lines if re.match(r"(for .*; do )?crkd ", line)]


def words_of(line: str) -> list[str]:
    """The words of the command, in a loop those of its body."""
    return shlex.split(line.partition("; do ")[2].removesuffix("; done") or line, comments=True)


@pytest.mark.parametrize("line", sorted(set(command_lines(*PAGES))))
def test_a_documented_command_line_is_understood(line):
    import typer.main

    from crkd_cli.cli import app

    words = words_of(line)[1:]
    if words[0].startswith("-"):
        assert CliRunner().invoke(app, ["--help"]).exit_code == 0
        return
    group = typer.main.get_command(app)
    command = group.commands[words[0]]  # KeyError: no such command
    if not {"--help", "-h"} & set(words):
        command.make_context(
            words[0], words[1:]
        )  # parses, runs nothing; raises where an option is unknown


def test_every_command_and_method_is_documented():
    import typer.main

    from crkd_cli.cli import app
    from crkd_cli.methods import METHODS

    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    for command in typer.main.get_command(app).commands:
        assert f"crkd {command} " in readme, command
    for method in METHODS.names():
        assert method in readme, method


def test_links_to_files_of_the_project_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


FRAMES: dict[int, dict[str, Any]] = {
    2: {"resize": [64, 64]},
    3: {"patch": [48, 48, 32], "stride": [32, 32, 16]},
}
STEPS = 6
# The lines that the project promises, whatever the pages say.
PROMISED = [
    "crkd prepare-data isic2018",
    "crkd train --dataset la --labeled 4",
    "crkd evaluate checkpoint.pth",
    "crkd predict folder",
]


@pytest.mark.realdata
@pytest.mark.slow
def test_every_documented_line_runs(shared_data: Path, tmp_path: Path, my_method: Path) -> None:
    newcomer = Newcomer(tmp_path / "here", program(tmp_path / "program", shared_data))
    raw_files(newcomer.folder, shared_data)
    lines = command_lines(CHECKOUT / "README.md")
    assert len(lines) > 10
    assert set(PROMISED[:2]) <= set(lines)
    for line in lines:
        newcomer.run(line)
    shutil.copy(
        newcomer.folder / "runs" / "acdc-crkd-3" / "best.pth", newcomer.folder / "checkpoint.pth"
    )
    shutil.copytree(newcomer.folder / "new-images", newcomer.folder / "folder")
    for line in PROMISED[2:]:
        newcomer.run(line)
    for page in sorted(
        (CHECKOUT / "docs").glob("**/*.md")
    ):  # a page's runs may have a README run's name and other settings
        reader = replace(newcomer, folder=tmp_path / page.stem)
        reader.folder.mkdir()
        (reader.folder / "data").symlink_to(newcomer.folder / "data")
        shutil.copy(my_method, reader.folder)
        for line in {tuple(words_of(line)): line for line in command_lines(page)}.values():
            reader.run(line)


@dataclass(frozen=True)
class Newcomer:
    """Someone in `folder` with a shell that finds the command crkd in `program`/bin."""

    folder: Path
    program: Path

    def run(self, line: str) -> None:
        """The line exits 0, and what it is there for was made by it."""
        words = words_of(line)
        if "train" in words and (steps := own_length(words)):
            self._begin_near_the_end(line, words, steps)
        begin = time.time()
        with self._planned_for(words, steps=20000) if "--stop-after" in words else nullcontext():
            self._shell(line)
        for product in products(words, self.folder):
            assert product.is_file(), f"{line}\nleft no {product}"
            assert product.stat().st_mtime >= begin - 1, f"{line}\ndid not write {product}"

    def _begin_near_the_end(self, line: str, words: list[str], steps: int) -> None:
        """Here and not in a process of its own: loading PyTorch takes longer than two steps."""
        from crkd_cli.cli import app

        shutil.rmtree(
            run_folder(words, self.folder), ignore_errors=True
        )  # of a line before, with other settings
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.delenv("CRKD_DATA", raising=False)
            patch.setattr(
                paths, "__file__", str(self.program / "crkd_cli" / "paths.py")
            )  # configs/ and splits/ are beside it
            begun = CliRunner().invoke(
                app, [*without(words[1:], "--stop-after"), "--set", "train.steps=2"]
            )
        assert begun.exit_code == 0, f"{line}\n{begun.output}"
        last = run_folder(words, self.folder) / "last.pth"
        checkpoints.save_checkpoint(
            replace(checkpoints.load_checkpoint(last), step=steps - 2), last
        )

    @contextmanager
    def _planned_for(self, words: list[str], steps: int) -> Iterator[None]:
        """Inside, the data set's configuration has so many steps, as the package's has: a line stops long before."""
        file = self.program / "configs" / f"{option(words, '--dataset')}.yaml"
        short = file.read_text()
        tree = yaml.safe_load(short)
        tree["train"]["steps"] = steps
        file.write_text(yaml.safe_dump(tree))
        yield
        file.write_text(short)

    def _shell(self, line: str) -> None:
        path = f"{self.program / 'bin'}:{os.environ['PATH']}"
        environment = {
            **os.environ,
            "PATH": path,
            "PYTHONPATH": str(self.program),
            "HOME": str(self.folder),
        }
        for name in ("CRKD_DATA", "NO_COLOR", "COLUMNS"):
            environment.pop(name, None)
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"$ {line}\n{done.stdout}{done.stderr}"
        assert "\x1b" not in done.stdout + done.stderr  # plain where it is piped


def products(words: list[str], folder: Path) -> Iterable[Path]:
    """The files that a command line is there for."""
    command, name = words[1], words[2]
    if command == "prepare-data":
        return [folder / "data" / "prepared" / name / "index.json"]
    if command == "make-splits":
        return [
            folder / "data" / "prepared" / name / "splits" / f"{option(words, '--labeled')}.yaml"
        ]
    if command == "train":
        names = ("config.yaml", "log.jsonl", "metrics.json", "last.pth")
        return [run / file for run in run_folders(words, folder) for file in names]
    if command == "compare":
        out, page = (folder / option(words, name) for name in ("--out", "--report"))
        return [
            out / "comparison.md",
            out / "comparison.json",
            out / "scores.csv",
            out / "tests.csv",
            page / "index.html",
        ]
    if command == "evaluate" and "$" in name:  # a loop: compare needs what it makes
        return []
    if command == "evaluate":
        found = (folder / name).parent.glob(f"evaluation-{option(words, '--protocol', 'strict')}-*")
        results = max(found, key=lambda path: path.stat().st_mtime)
        return [results / "summary.json", results / "cases.csv"]
    masks = folder / f"{name.rstrip('/')}-masks"
    images = [image for image in (folder / name).iterdir() if image.is_file()]
    overlays = (
        [masks / "overlays" / f"{formats.stem(image)}.png" for image in images]
        if "--overlay" in words
        else []
    )
    return [*(masks / formats.label_name(image) for image in images), *overlays]


def without(words: list[str], name: str) -> list[str]:
    """`words` without the option `name` and its value."""
    at = words.index(name) if name in words else len(words)
    return [*words[:at], *words[at + 2 :]]


def option(words: list[str], name: str, default: str = "") -> str:
    return words[words.index(name) + 1] if name in words else default


def run_folder(words: list[str], folder: Path) -> Path:
    labeled = option(words, "--labeled").replace("%", "pct")
    usual = f"runs/{option(words, '--dataset')}-{Path(option(words, '--method', 'crkd')).stem}-{labeled}"
    return folder / option(words, "--out", usual)


def run_folders(words: list[str], folder: Path) -> list[Path]:
    run, seeds = run_folder(words, folder), option(words, "--seeds")
    return (
        [run.with_name(f"{run.name}-seed{seed}") for seed in seeds.split(",")] if seeds else [run]
    )


def own_length(words: list[str]) -> int:
    """The steps that a line asks for itself, or its method's authors set; 0 if they are left to the configuration."""
    if "--stop-after" in words:
        return int(option(words, "--stop-after"))
    method = option(words, "--method", "crkd")
    published = (
        METHODS[method].published.get(option(words, "--dataset"), {})
        if method in METHODS.names()
        else {}
    )
    own = (int(word.partition("=")[2]) for word in words if word.startswith("train.steps="))
    return next(own, int(published.get("train.steps", 0)))


def program(folder: Path, data: Path) -> Path:
    """The package of the checkout between short configurations and splits of what is here, and the command crkd."""
    for part in ("bin", "configs", "splits"):
        (folder / part).mkdir(parents=True)
    (folder / "configs" / "about").symlink_to(CHECKOUT / "configs" / "about")
    (folder / "crkd_cli").symlink_to(CHECKOUT / "crkd_cli")
    command = folder / "bin" / "crkd"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m crkd_cli "$@"\n')
    command.chmod(0o755)
    for file in (CHECKOUT / "configs").glob("*.yaml"):
        tree = yaml.safe_load(file.read_text())
        tree["data"] |= {
            "frame": FRAMES[len(next(iter(tree["data"]["frame"].values())))],
            "labeled_batch_size": 2,
            "unlabeled_batch_size": 2,
        }
        tree["model"]["widths"] = [4, 4, 8, 8, 8]
        tree["train"] |= {"steps": STEPS, "eval_every": STEPS // 2, "log_every": 1}
        (folder / "configs" / file.name).write_text(yaml.safe_dump(tree))
    here = {formats.stem(path) for path in data.rglob("*.*")} | {
        path.name for path in data.glob("la/*/*")
    }
    here |= {stem.partition("_")[0] for stem in here if stem.startswith("patient")}
    for file in (CHECKOUT / "splits").glob("*.yaml"):
        (folder / "splits" / file.name).write_text(
            yaml.safe_dump(_present(yaml.safe_load(file.read_text()), here))
        )
    return folder


def _present(tree: dict[Any, Any], here: set[str]) -> dict[Any, Any]:
    """A split, or its label counts, without the groups that are not `here`."""
    kept = {
        key: _present(part, here) if isinstance(part, dict) else [g for g in part if g in here]
        for key, part in tree.items()
    }
    return {key: part for key, part in kept.items() if part}


def raw_files(folder: Path, data: Path) -> None:
    """What the README takes to be in the current folder: raw sets, archives, own data, images without masks."""
    folder.mkdir()
    shutil.copytree(
        data / "acdc" / "data", folder / "ACDC", ignore=shutil.ignore_patterns("slices")
    )
    (folder / "2018LA_Seg_Training Set").symlink_to(data / "la" / "2018LA_Seg_Training Set")
    for part in (data / "isic2018").iterdir():
        _zip(folder / f"{part.name}.zip", part)
    _zip(folder / "kvasir-seg.zip", data / "kvasir" / "Kvasir-SEG")
    (folder / "scans").mkdir()
    shutil.copy(
        data / "acdc_nifti" / "training" / "patient011" / "patient011_frame01.nii.gz",
        folder / "scans",
    )
    photos = sorted((data / "kvasir" / "Kvasir-SEG" / "images").iterdir())
    for part in ("my-polyps/images", "my-polyps/labels", "new-images"):
        (folder / part).mkdir(parents=True)
    for photo in photos[:2]:
        shutil.copy(photo, folder / "new-images")
    # 14 photos and their mirror images stand for 42 patients; every seventh has no label.
    ways = {"": lambda image: image, "-mirrored": ImageOps.mirror, "-upside-down": ImageOps.flip}
    for number, (photo, way) in enumerate((photo, way) for photo in photos for way in ways):
        name = f"{photo.stem}{way}.png"
        ways[way](Image.open(photo)).save(folder / "my-polyps" / "images" / name)
        if number % 7:
            mask = Image.open(photo.parents[1] / "masks" / photo.name).convert("L")
            ways[way](mask).save(folder / "my-polyps" / "labels" / name)


def _zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, path.relative_to(folder.parent))
