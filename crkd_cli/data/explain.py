"""Explain why a folder is not understood, with the lines of a description that would help."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from crkd_cli.data import patterns
from crkd_cli.data.description import Description
from crkd_cli.data.inventory import FileRecord, RawFile
from crkd_cli.data.layout import IMAGES, Layout, find_layout
from crkd_cli.data.naming import Candidate, forms
from crkd_cli.data.raw import formats
from crkd_cli.errors import pluralize
from crkd_cli.text import printable

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
MAX_SUFFIXES = 3
_SEPARATORS = " _.-"


def why_no_image(root: Path, base: str, files: Sequence[RawFile], layout: Layout | None) -> str:
    """Explain why there is no image below the folder `base`, and what to do."""
    if layout is not None:
        folder = root / layout.images_folder
        return (
            f"{folder} contains no image{_other_suffixes(files, layout.images_folder)}; "
            f"supported formats: {', '.join(formats.SUFFIXES)}"
        )
    inside = [file for file in files if file.name.startswith(base) and not file.skipped]
    archives = [file.name for file in inside if file.name.lower().endswith(ARCHIVES)]
    images = [file.name for file in inside if formats.suffix(file.path)]
    if archives and not images:
        return f"no images/ in {root}; give the archive {printable(archives[0])} to --source"
    if inner := _folder_with_images(images):
        return f"no images/ in {root}, but in {inner}; give {root / inner} to --source"
    advice = "put the images there, and label maps with the same names in labels/"
    if lines := _lines_for_case_folders(images):
        advice = f"there are several images in a folder; choose one in dataset.yaml: {lines}"
    elif images:
        advice += f", or say where they are in dataset.yaml, such as images: {_example(images)}"
    return f"no images/ in {root}; {advice}"


def why_unlabeled(
    root: Path, base: str, files: Sequence[RawFile], description: Description, example: str
) -> str:
    """Explain why no image has a label, and what to do. `example` is the id of a case."""
    if description.labels:
        pattern_list = ", ".join(map(repr, description.label_patterns.values()))
        return (
            f"no file in {root} matches the pattern labels: {pattern_list}, with the name of an "
            f"image in place of {{name}} (such as {printable(example)}); correct it"
        )
    layout = find_layout(files, base, FileRecord())
    if layout is None or layout.labels_folder is None:
        if root.name.lower() in map(str.lower, IMAGES):
            return f"{root} contains images only; give the folder above it, {root.parent}"
        return (
            f"{root} has no labels/ (or masks/, labelsTr/), and no label beside an image; put "
            "label maps with the images' names into labels/"
        )
    folder = root / layout.labels_folder
    if not layout.labels:
        return (
            f"{folder} contains no label map{_other_suffixes(files, layout.labels_folder)}; put "
            "label maps with the images' names there"
        )
    count = pluralize(len(layout.labels), "label map")
    return (
        f"{folder} contains {count}, but none has the name of an image "
        f"({printable(layout.labels[0].stem)} …; expected {printable(example)}); "
        f"{_how_to_match(layout)}"
    )


def _how_to_match(layout: Layout) -> str:
    """Return the lines of a description by which labels match images, if they are clear."""
    parts = {}
    for key, group in (("images", layout.images), ("labels", layout.labels)):
        flat = [candidate for candidate in group if not candidate.folder]
        stems = [candidate.stem for candidate in flat]
        start, end = _common_ends(stems)
        names = {stem[len(start) : len(stem) - len(end)] for stem in stems}
        parts[key] = names, _pattern(flat, start, end)
    (images, image_pattern), (labels, label_pattern) = parts.values()
    if not images & labels:
        return 'rename them, or say how they are named: labels: "labels/{name}_x.png"'
    return (
        "rename them, or write to dataset.yaml the lines "
        f'images: "{image_pattern}" and labels: "{label_pattern}"'
    )


def _pattern(candidates: Sequence[Candidate], start: str, end: str) -> str:
    """Return the pattern of files whose names begin with `start` and end with `end`."""
    folders = {candidate.file.name.rpartition("/")[0] for candidate in candidates}
    suffixes = [formats.suffix(candidate.file.path) for candidate in candidates]
    ending = patterns.common(suffixes) if suffixes else ""
    return "/".join(filter(None, (*folders, f"{start}{{name}}{end}{ending}")))


def _common_ends(stems: Sequence[str]) -> tuple[str, str]:
    """Return the words that all names begin and end with, with the separator between."""
    if len(set(stems)) < 2:
        return "", ""
    start, _, end = patterns.common(stems).partition("*")
    at = max(start.rfind(separator) for separator in _SEPARATORS) + 1
    separator = re.search(f"[{_SEPARATORS}]", end)
    return start[:at], "" if separator is None else end[separator.start() :]


def _folder_with_images(images: Iterable[str]) -> str | None:
    """Return a folder that contains a folder of images, one of training images if there is one."""
    names = [name.lower() for name in IMAGES]
    folders = {image.rpartition("/")[0] for image in images}
    above = {
        folder.rpartition("/")[0]
        for folder in folders
        if "/" in folder and folder.rpartition("/")[2].lower() in names
    }
    return min(above, key=lambda folder: ("train" not in folder.lower(), folder), default=None)


def _lines_for_case_folders(images: Sequence[str]) -> str | None:
    """Return the lines that choose one of the images in every folder of a case, and its label."""
    folder = next((image.rpartition("/")[0] for image in images if "/" in image), "")
    files = [image.rpartition("/")[2] for image in images if image.startswith(f"{folder}/")]
    masks = [name for name in files if len(list(forms(formats.stem(Path(name))))) > 1]
    scans = [name for name in files if name not in masks]
    if not folder or "/" in folder or not masks or len(scans) < 2:
        return None
    lines = []
    for key, name in (("images", scans[0]), ("labels", masks[0])):
        pattern = f"{{name}}/{name}"
        if name.startswith(folder):
            pattern = f"*/{{name}}{name[len(folder) :]}"
        lines.append(f'{key}: "{printable(pattern)}"')
    return " and ".join(lines)


def _example(images: Sequence[str]) -> str:
    """Return the pattern of the folder with the most images."""
    folders: dict[str, list[str]] = defaultdict(list)
    for image in images:
        folders[image.rpartition("/")[0]].append(image)
    folder = max(folders, key=lambda name: len(folders[name]))
    ending = formats.suffix(Path(folders[folder][0]))
    return f'"{printable("/".join(filter(None, (folder, "*"))))}{ending}"'


def _other_suffixes(files: Iterable[RawFile], folder: str) -> str:
    """Say which files that are not images are in `folder`, if there are some."""
    prefix = f"{folder}/" if folder else ""
    counts = Counter(
        file.path.suffix.lower() or "without suffix"
        for file in files
        if file.name.startswith(prefix) and not file.skipped
    )
    others = [f"{count} {printable(suffix)}" for suffix, count in counts.most_common(MAX_SUFFIXES)]
    return f" in a supported format ({', '.join(others)})" if others else ""
