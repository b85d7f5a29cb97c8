"""Explain why a folder cannot be read as a dataset, and which lines of a description would help."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from crkd_cli.data import patterns
from crkd_cli.data.description import Description
from crkd_cli.data.explain_channels import lines_for_case_folders, lines_for_channels
from crkd_cli.data.inventory import FileRecord, RawFile
from crkd_cli.data.layout import IMAGES, Layout, find_layout
from crkd_cli.data.naming import Candidate
from crkd_cli.data.raw import formats
from crkd_cli.errors import pluralize
from crkd_cli.text import printable

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
MAX_SUFFIXES = 3
_SEPARATORS = " _.-"
_LABEL_FOLDER = re.compile(r"label|mask|seg|truth|annot|gt", re.IGNORECASE)


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
    images = [file.name for file in inside if file.is_image]
    if archives and not images:
        return f"no images/ in {root}; give the archive {printable(archives[0])} to --source"
    if inner := _folder_with_images(images):
        return f"no images/ in {root}, but in {inner}; give {root / inner} to --source"
    if lines := lines_for_case_folders(inside):
        return f"no images/ in {root}, but a folder per case; add to dataset.yaml: {lines}"
    advice = "put the images there, and label maps with the same names in labels/"
    if lines := _lines_for_two_folders(inside) or _line_for_images(images):
        advice += f", or add to dataset.yaml: {lines}"
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
    images = [] if layout is None else [x for x in layout.images if x.file.dicom is None]
    if layout is not None and (lines := lines_for_channels(images, layout.labels)):
        return (
            f"{root} has several images per label; if they are channels, add to dataset.yaml: "
            f"{lines}"
        )
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
    """Advise how to match labels with images, with lines of a description if they are clear."""
    images, labels = ([x for x in group if not x.folder] for group in layout[:2])
    if lines := _lines(images, labels):
        return f"rename them, or add these lines to dataset.yaml: {lines}"
    return 'rename them, or say how they are named: labels: "labels/{name}_x.png"'


def _lines(images: Sequence[Candidate], labels: Sequence[Candidate]) -> str | None:
    """Return lines that match the names of labels with those of images, or None."""
    image_stems, label_stems = ([x.stem for x in group] for group in (images, labels))
    image_ends, label_ends = _common_ends(image_stems), _common_ends(label_stems)
    # What both have in common belongs to the names.
    pairs = zip(image_ends, label_ends, strict=True)
    cut = [("", "") if a == b else (a, b) for a, b in pairs]
    (image_start, label_start), (image_end, label_end) = cut
    names = _inner(image_stems, image_start, image_end)
    if names.isdisjoint(_inner(label_stems, label_start, label_end)):
        return None
    return (
        f'images: "{_pattern(images, image_start, image_end)}" and '
        f'labels: "{_pattern(labels, label_start, label_end)}"'
    )


def _inner(stems: Iterable[str], start: str, end: str) -> set[str]:
    """Return names without their `start` and `end`."""
    return {stem[len(start) : len(stem) - len(end)] for stem in stems}


def _pattern(candidates: Sequence[Candidate], start: str, end: str) -> str:
    """Return the pattern of files whose names begin with `start` and end with `end`."""
    folders = {candidate.file.name.rpartition("/")[0] for candidate in candidates}
    suffixes = [formats.suffix(candidate.file.path) for candidate in candidates]
    ending = patterns.common(suffixes) if suffixes else ""
    return printable("/".join(filter(None, (*folders, f"{start}{{name}}{end}{ending}"))))


def _common_ends(stems: Sequence[str]) -> tuple[str, str]:
    """Return the words that all names begin and end with, including separators."""
    if len(set(stems)) < 2:
        return "", ""
    start, _, end = patterns.common(stems).partition("*")
    at = max(start.rfind(separator) for separator in _SEPARATORS) + 1
    return start[:at], end


def _folder_with_images(images: Iterable[str]) -> str | None:
    """Return a folder that contains a folder of images, preferably of training images."""
    names = [name.lower() for name in IMAGES]
    folders = {image.rpartition("/")[0] for image in images}
    above = {
        folder.rpartition("/")[0]
        for folder in folders
        if "/" in folder and folder.rpartition("/")[2].lower() in names
    }
    return min(above, key=lambda folder: ("train" not in folder.lower(), folder), default=None)


def _lines_for_two_folders(files: Iterable[RawFile]) -> str | None:
    """Return the lines for images in one folder and labels in the other, by their names."""
    folders: dict[str, list[Candidate]] = defaultdict(list)
    for file in files:
        if formats.suffix(file.path):
            folder, _, name = file.name.rpartition("/")
            folders[folder].append(Candidate(file, "", formats.stem(Path(name))))
    if len(folders) != 2:
        return None
    images, labels = sorted(folders, key=lambda name: _LABEL_FOLDER.search(name) is not None)
    if _LABEL_FOLDER.search(images) or not _LABEL_FOLDER.search(labels):
        return None
    return _lines(folders[images], folders[labels])


def _line_for_images(images: Sequence[str]) -> str | None:
    """Return the line for the images in most folders, by their name, or in the largest folder."""
    if not images:
        return None
    counts: Counter[str] = Counter()
    for image in images:
        folder, _, name = image.rpartition("/")
        counts[f"{folder.rpartition('/')[0]}/{{name}}/{name}".lstrip("/")] += 1
    pattern, count = counts.most_common(1)[0]
    if count == 1:
        folder, _ = Counter(image.rpartition("/")[0] for image in images).most_common(1)[0]
        first = next(image for image in images if image.rpartition("/")[0] == folder)
        pattern = "/".join(filter(None, (folder, f"*{formats.suffix(Path(first))}")))
    return f'images: "{printable(pattern)}"'


def _other_suffixes(files: Iterable[RawFile], folder: str) -> str:
    """Count the files in `folder` that are not images, by suffix; empty if there are none."""
    prefix = f"{folder}/" if folder else ""
    counts = Counter(
        file.path.suffix.lower() or "without a suffix"
        for file in files
        if file.name.startswith(prefix) and not file.skipped
    )
    others = [f"{count} {printable(suffix)}" for suffix, count in counts.most_common(MAX_SUFFIXES)]
    return f" in a supported format ({', '.join(others)})" if others else ""
