"""Find out which files are the channels of a case, and which lines of a description say so."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from crkd_cli.data import patterns
from crkd_cli.data.inventory import RawFile
from crkd_cli.data.naming import MASK_WORDS, Candidate, forms
from crkd_cli.data.raw import formats
from crkd_cli.errors import CrkdError
from crkd_cli.text import printable

SEPARATORS = " _.-"
MAX_CLASSES = 64  # in a file that is taken for a label map
MASK_VALUES = 2


def lines_for_case_folders(files: Iterable[RawFile]) -> str | None:
    """Return the lines for folders of cases with files of the same names, or None.

    If no name is that of a label, the file with few integers is, or one for each class.
    """
    files_by_pattern = _common_patterns(files)
    counts = _count_values(files_by_pattern)
    labels = [pattern for pattern in files_by_pattern if _is_mask(_stem(pattern))][:1]
    labels = labels or _choose_labels(counts)
    channels = [
        pattern
        for pattern in files_by_pattern
        if pattern not in labels and pattern not in counts and not _has_mask_word(pattern)
    ]
    if not labels or not channels:
        return None
    return f"images: {_patterns_text(channels)} and labels: {_patterns_text(labels)}"


def lines_for_channels(images: Sequence[Candidate], labels: Sequence[Candidate]) -> str | None:
    """Return the lines for images named after their labels and channels, or None.

    For example, a_t1 and a_flair, or a/t1 and a/flair, with the label a; or with a_seg beside them.
    """
    masks = labels or [image for image in images if _is_mask(image.stem)]
    first = 0 if labels else 1  # beside images, a label has one more word
    bases = {form.base for mask in masks for form in list(forms(mask.stem))[first:]}
    by_pattern: dict[str, list[Candidate]] = defaultdict(list)
    cases = set()
    for image in images:
        reading = _read_name(image, bases)
        if reading is not None and image not in masks:
            case, pattern = reading
            by_pattern[pattern].append(image)
            cases.add(case)
    usual = [pattern for pattern, group in by_pattern.items() if 2 * len(group) > len(cases)]
    label_ends = {mask.stem[len(_base(mask.stem, cases) or "") :] for mask in masks}
    if len(usual) < 2 or len(label_ends) > 1:
        return None
    channels = [_below(by_pattern[pattern], pattern) for pattern in usual]
    label = _below(masks, f"{{name}}{label_ends.pop()}")
    return f"images: {_patterns_text(channels)} and labels: {_patterns_text([label])}"


def _read_name(image: Candidate, bases: set[str]) -> tuple[str, str] | None:
    """Return which of `bases` is the case of an image, and the pattern of the image's name."""
    case = _base(image.stem, bases)
    if case is not None:
        return case, f"{{name}}{image.stem[len(case) :]}"
    if image.folder in bases:
        return image.folder, f"{{name}}/{image.stem}"
    return None


def _common_patterns(files: Iterable[RawFile]) -> dict[str, list[RawFile]]:
    """Return the files of most folders by their patterns, if all folders are on one level."""
    by_pattern: dict[str, list[RawFile]] = defaultdict(list)
    folders = set()
    for file in files:
        folder, _, name = file.name.rpartition("/")
        if not folder or not formats.suffix(file.path):
            continue
        folders.add(folder)
        case = folder.rpartition("/")[2]
        pattern = f"{{name}}/{name}"
        if name.startswith(case):
            pattern = f"*/{{name}}{name.removeprefix(case)}"
        by_pattern[pattern].append(file)
    parents = sorted({folder.rpartition("/")[0] for folder in folders})
    if len(folders) < 2 or len({parent.count("/") for parent in parents}) > 1:
        return {}
    above = f"{parents[0]}/" if parents[0] else ""
    if len(parents) > 1:
        above = "*/" * (1 + parents[0].count("/"))
    common = {}
    for pattern, group in by_pattern.items():
        if 2 * len(group) > len(folders):
            common[above + pattern] = group
    return common


def _count_values(files_by_pattern: Mapping[str, Sequence[RawFile]]) -> dict[str, int]:
    """Return the number of values by pattern, where the first file contains few integers."""
    counts = {}
    for pattern, files in files_by_pattern.items():
        try:
            values = np.unique(formats.read_label(files[0].path).array)
        except CrkdError:
            continue
        if 1 < len(values) <= MAX_CLASSES:
            counts[pattern] = len(values)
    return counts


def _choose_labels(counts: Mapping[str, int]) -> list[str]:
    """Return the pattern of the label map, the one with the most values, or those of masks."""
    most = max(counts.values(), default=0)
    if most > MASK_VALUES:
        return [pattern for pattern, count in counts.items() if count == most][:1]
    return [pattern for pattern in counts if not _has_mask_word(pattern)] or list(counts)[:1]


def _patterns_text(texts: Sequence[str]) -> str:
    """Return a pattern, or several by their names, which are what they differ in."""
    if len(texts) == 1:
        return f'"{printable(texts[0])}"'
    pairs = zip(_differences([_stem(pattern) for pattern in texts]), texts, strict=True)
    listed = ", ".join(f'{printable(name)}: "{printable(text)}"' for name, text in pairs)
    return f"{{{listed}}}"


def _differences(stems: Sequence[str]) -> list[str]:
    """Return what is different in each of the names."""
    start, _, end = patterns.common(stems).partition("*")
    start = start[: max(start.rfind(separator) for separator in SEPARATORS) + 1]
    middles = [stem[len(start) : len(stem) - len(end)].strip(SEPARATORS) for stem in stems]
    return [middle or stem for middle, stem in zip(middles, stems, strict=True)]


def _below(candidates: Sequence[Candidate], pattern: str) -> str:
    """Return the `pattern` of the names of files with their folder and suffix."""
    *folders, _ = candidates[0].file.name.split("/")
    if candidates[0].folder:
        del folders[-1]
        if "/" not in pattern:  # else, {name} is this folder
            folders.append("*")
    suffix = patterns.common(formats.suffix(candidate.file.path) for candidate in candidates)
    return "/".join((*folders, f"{pattern}{suffix}"))


def _stem(pattern: str) -> str:
    return formats.stem(Path(pattern.rpartition("/")[2]))


def _is_mask(stem: str) -> bool:
    return len(list(forms(stem))) > 1


def _has_mask_word(pattern: str) -> bool:
    return any(word in _stem(pattern).lower() for word in MASK_WORDS)


def _base(stem: str, bases: Iterable[str]) -> str | None:
    """Return the longest of `bases` that a name begins with, before a separator or its end."""
    fitting = (
        base
        for base in bases
        if stem.startswith(base) and stem[len(base) : len(base) + 1] in ("", *SEPARATORS)
    )
    return max(fitting, key=len, default=None)
