"""A newcomer who runs the commands of the documentation in order, with a few real cases.

To take seconds instead of hours, they run with a copy of the package whose configurations are short
and narrow, and whose splits name only the cases at hand; where a command states its number of
steps, its batch size or the size of its images, that is reduced.
"""

import os
import re
import shlex
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageOps

from crkd_cli.data.raw import formats
from crkd_cli.methods import METHODS
from tests.command_server import CHECKOUT, CommandServer
from tests.scans import add_scans

FRAMES: dict[int, dict[str, Any]] = {
    2: {"resize": [64, 64]},
    3: {"patch": [48, 48, 32], "stride": [32, 32, 16]},
}
STEPS = 6
BATCH = 2
FOLDS = 5  # in the commands that make them
POLYP_SIZE = (48, 40)


def words_of(line: str) -> list[str]:
    """Split a command into words, the first of which is crkd; of a loop, its body."""
    body = line.partition("; do ")[2].removesuffix("; done")
    words = shlex.split(body or line, comments=True)
    if words[0] == "torchrun":
        return ["crkd", *words[words.index("crkd_cli") + 1 :]]
    return words


def expanded(line: str, folder: Path) -> list[list[str]]:
    """Return the commands that a shell in `folder` makes of a line: of a loop, one for each value.

    Patterns with * become the files that match them.
    """
    loop = re.fullmatch(r"for (\w+) in (.+); do (.+); done", line)
    if not loop:
        return [matching_files(shlex.split(line, comments=True), folder)]
    name, values, body = loop.groups()
    return [
        shlex.split(body.replace(f"${name}", value))
        for value in matching_files(values.split(), folder)
    ]


def matching_files(words: list[str], folder: Path) -> list[str]:
    """Replace patterns by the files in `folder` that match them, as a shell does."""
    found = []
    for word in words:
        matches = sorted(folder.glob(word)) if "*" in word else []
        found += [str(match.relative_to(folder)) for match in matches] or [word]
    return found


@dataclass(frozen=True)
class Newcomer:
    """Someone in `folder`. Commands start as forks of `server`, without the seconds of imports."""

    folder: Path
    server: CommandServer

    def run(self, line: str) -> None:
        """Run the commands of a line, and check that they succeed and write their files."""
        for words in expanded(line, self.folder):
            self._run(shlex.join(words))

    def _run(self, line: str) -> None:
        words = words_of(line)
        short = shortened(line)
        if short != line:
            # Lines that state their length may differ in other settings from the run before.
            for folder in run_folders(words, self.folder):
                shutil.rmtree(folder, ignore_errors=True)
        begin = time.time()
        outcome = self.server.run(words_of(short)[1:], self.folder)
        output = outcome.stdout + outcome.stderr
        assert outcome.code == 0, f"$ {short}\n{output}"
        assert "\x1b" not in output  # no colors when piped
        for product in products(words, self.folder):
            assert product.is_file(), f"{line}\ndid not create {product}"
            assert product.stat().st_mtime >= begin - 1, f"{line}\ndid not write {product}"


def environment_of(program: Path, home: Path) -> dict[str, str]:
    """Return the variables of someone who uses the package in `program`."""
    environment = {**os.environ, "PYTHONPATH": str(program), "HOME": str(home)}
    for name in ("CRKD_DATA", "NO_COLOR", "COLUMNS"):
        environment.pop(name, None)
    return environment


def shortened(line: str) -> str:
    """Return `line` with small sizes, if it sets them, and at most STEPS training steps.

    Its method's authors may set more steps, too.
    """
    line = re.sub(r"(?<=labeled_batch_size=)\d+", str(BATCH), line)
    line = re.sub(r"(?<=data\.frame=){resize: [^}]*}", f"{{resize: {FRAMES[2]['resize']}}}", line)
    line = re.sub(r"(?<=train\.steps=)\d+", str(STEPS), line)
    line = re.sub(r"(?<=--stop-after )\d+", str(STEPS // 2), line)
    words = words_of(line)
    method = option(words, "--method", "crkd")
    if words[1] != "train" or "train.steps=" in line or method not in METHODS.names():
        return line
    author_settings = METHODS[method].author_settings.get(option(words, "--dataset"), {})
    return f"{line} --set train.steps={STEPS}" if "train.steps" in author_settings else line


def products(words: list[str], folder: Path) -> Iterable[Path]:
    """Return the files that a command is expected to write."""
    return PRODUCTS[words[1]](words, folder)


def prepared_files(words: list[str], folder: Path) -> Iterable[Path]:
    if "--check" in words:
        return []
    return [folder / "data" / "prepared" / words[2] / "index.json"]


def split_files(words: list[str], folder: Path) -> Iterable[Path]:
    splits = folder / "data" / "prepared" / words[2] / "splits"
    if "--folds" in words:
        splits /= "folds"
    return [splits / f"{option(words, '--labeled')}.yaml"]


def run_files(words: list[str], folder: Path) -> Iterable[Path]:
    runs = run_folders(words, folder)
    if fold := option(words, "--fold"):
        runs = [run / f"fold{fold}" for run in runs]
    if "--folds" in words:
        runs = [run / f"fold{number}" for run in runs for number in range(1, FOLDS + 1)]
    for run in runs:
        for name in ("config.yaml", "log.jsonl", "metrics.json", "last.pth"):
            yield run / name


def evaluation_files(words: list[str], folder: Path) -> Iterable[Path]:
    if "--out" in words:
        return [folder / option(words, "--out") / name for name in ("summary.json", "cases.csv")]
    protocol = option(words, "--protocol", "strict")
    scored = folder / words[2]
    evaluations = (scored if scored.is_dir() else scored.parent).glob(f"evaluation-{protocol}-*")
    newest = max(evaluations, key=lambda path: path.stat().st_mtime)
    return [newest / "summary.json", newest / "cases.csv"]


def comparison_files(words: list[str], folder: Path) -> Iterable[Path]:
    if "--out" in words:
        for name in ("comparison.md", "comparison.json", "scores.csv", "tests.csv"):
            yield folder / option(words, "--out") / name
    if "--report" in words:
        yield folder / option(words, "--report") / "index.html"


def mask_files(words: list[str], folder: Path) -> Iterable[Path]:
    images = [image for image in (folder / words[2]).iterdir() if image.is_file()]
    masks = folder / option(words, "--out", f"{words[2].rstrip('/')}-masks")
    for image in images:
        yield masks / formats.label_name(image)
        if "--overlay" in words:
            yield masks / "overlays" / f"{formats.stem(image)}.png"


def checkpoint_files(words: list[str], folder: Path) -> Iterable[Path]:
    return [folder / words[2]]


def exported_files(words: list[str], folder: Path) -> Iterable[Path]:
    model = folder / words[3]
    return [model, model.with_suffix(".json")]


def no_files(words: list[str], folder: Path) -> Iterable[Path]:
    return []


PRODUCTS: dict[str, Callable[[list[str], Path], Iterable[Path]]] = {
    "doctor": no_files,
    "methods": no_files,
    "prepare-data": prepared_files,
    "make-splits": split_files,
    "train": run_files,
    "evaluate": evaluation_files,
    "compare": comparison_files,
    "postprocess": checkpoint_files,
    "predict": mask_files,
    "suggest": no_files,
    "export": exported_files,
}


def option(words: list[str], name: str, default: str = "") -> str:
    return words[words.index(name) + 1] if name in words else default


def run_folders(words: list[str], folder: Path) -> list[Path]:
    """Return the folder of every seed that a command trains."""
    dataset, method = option(words, "--dataset"), option(words, "--method", "crkd")
    labeled = option(words, "--labeled").replace("%", "pct")
    folds = "-folds" if {"--fold", "--folds"} & set(words) else ""
    run = folder / option(words, "--out", f"runs/{dataset}-{Path(method).stem}-{labeled}{folds}")
    if seeds := option(words, "--seeds"):
        return [run.with_name(f"{run.name}-seed{seed}") for seed in seeds.split(",")]
    return [run]


def make_program(folder: Path, data: Path) -> Path:
    """Make the command crkd, with the package of the checkout and small configurations."""
    for part in ("bin", "configs", "splits"):
        (folder / part).mkdir(parents=True)
    (folder / "configs" / "about").symlink_to(CHECKOUT / "configs" / "about")
    (folder / "crkd_cli").symlink_to(CHECKOUT / "crkd_cli")
    command = folder / "bin" / "crkd"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m crkd_cli "$@"\n')
    command.chmod(0o755)
    for file in (CHECKOUT / "configs").glob("*.yaml"):
        tree = yaml.safe_load(file.read_text())
        frame = tree["data"]["frame"]
        dims = len(frame.get("resize") or frame["patch"])
        tree["data"] |= {
            "frame": FRAMES[dims],
            "labeled_batch_size": BATCH,
            "unlabeled_batch_size": BATCH,
        }
        if dims == 2:
            tree["model"]["name"] = "unet"  # for color images, auto is a large one
        tree["model"]["widths"] = [4, 4, 8, 8, 8]
        tree["train"] |= {"steps": STEPS, "eval_every": STEPS // 2, "log_every": 1}
        (folder / "configs" / file.name).write_text(yaml.safe_dump(tree))
    available = available_groups(data)
    for file in (CHECKOUT / "splits").glob("*.yaml"):
        split = keep_groups(yaml.safe_load(file.read_text()), available)
        (folder / "splits" / file.name).write_text(yaml.safe_dump(split))
    return folder


def available_groups(data: Path) -> set[str]:
    """Return names that include those of all patients (images) in `data`."""
    names = {formats.stem(path) for path in data.rglob("*.*")}
    names |= {path.name for path in data.glob("la/*/*")}
    return names | {name.partition("_")[0] for name in names if name.startswith("patient")}


def keep_groups(tree: dict[Any, Any], available: set[str]) -> dict[Any, Any]:
    """Return a split, or its label counts, without the groups that are not available."""
    kept = {}
    for key, part in tree.items():
        if isinstance(part, dict):
            kept[key] = keep_groups(part, available)
        else:
            kept[key] = [group for group in part if group in available]
    return {key: part for key, part in kept.items() if part}


def add_raw_files(folder: Path, data: Path) -> None:
    """Put the raw files that the pages mention into `folder`."""
    folder.mkdir()
    slices = shutil.ignore_patterns("slices")
    shutil.copytree(data / "acdc" / "data", folder / "ACDC", ignore=slices)
    (folder / "2018LA_Seg_Training Set").symlink_to(data / "la" / "2018LA_Seg_Training Set")
    for part in (data / "isic2018").iterdir():
        zip_folder(part, folder / f"{part.name}.zip")
    zip_folder(data / "kvasir" / "Kvasir-SEG", folder / "kvasir-seg.zip")
    (folder / "scans").mkdir()
    patient = data / "acdc_nifti" / "training" / "patient011"
    shutil.copy(patient / "patient011_frame01.nii.gz", folder / "scans")
    add_polyps(folder, data / "kvasir" / "Kvasir-SEG")
    add_scans(folder)


def add_polyps(folder: Path, kvasir: Path) -> None:
    """Add two folders of images, and my-polyps/ with 42 images.

    14 photos and their mirror images stand for 42 patients; every seventh has no label. They are
    small, because the plan trains on images of their size.
    """
    photos = sorted((kvasir / "images").iterdir())
    for name in ("new-images", "folder"):
        (folder / name).mkdir()
        for photo in photos[:2]:
            shutil.copy(photo, folder / name)
    images, labels = (folder / "my-polyps" / name for name in ("images", "labels"))
    images.mkdir(parents=True)
    labels.mkdir()
    variants = {"": lambda image: image, "-mirrored": ImageOps.mirror, "-flipped": ImageOps.flip}
    number = 0
    for photo in photos:
        for suffix, change in variants.items():
            name = f"{photo.stem}{suffix}.png"
            change(Image.open(photo)).resize(POLYP_SIZE).save(images / name)
            if number % 7:
                mask = Image.open(kvasir / "masks" / photo.name).convert("L")
                change(mask).resize(POLYP_SIZE, Image.Resampling.NEAREST).save(labels / name)
            number += 1


def zip_folder(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, path.relative_to(folder.parent))
