"""Pair images with their labels, by name or by the patterns of a description."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from crkd_cli.data.cases import DicomCase, LabelFile, RawCase
from crkd_cli.data.channels import Image, name_images
from crkd_cli.data.inventory import FileRecord, RawFile, list_files
from crkd_cli.data.layout import SIDECARS, candidates
from crkd_cli.data.naming import (
    Candidate,
    Form,
    Key,
    forms,
    label_keys,
    read_by_pattern,
    similar_name,
)
from crkd_cli.data.raw import formats
from crkd_cli.text import printable

NO_IMAGE = "no image has the name of this label"
BACKGROUND = "background"
MAX_ID_BYTES = 240  # of file names, which have at most 255
MAX_HINTS = 5


class _Match(NamedTuple):
    """A label file of a case."""

    file: RawFile
    form: Form


def pair_folders(
    root: Path, images: Path, labels: Path, record: FileRecord, notes: list[str]
) -> list[RawCase]:
    """Return a case for every image in the folder `images` of `root`, sorted by id.

    Its labels are the files in `labels` or beside it that have its name. `record` receives what is
    left out or refused, `notes` what the user should know.
    """
    files = list_files(root)
    parts = []
    for folder in (images, labels):
        prefix = f"{folder.relative_to(root).as_posix()}/".removeprefix("./")
        parts.append(candidates(files, prefix, record))
    image_files, label_files = parts
    named, masks = name_images(image_files, label_keys(label_files))
    return label_by_name(named, [*label_files, *masks], record, notes)


def label_by_name(
    images: Sequence[Image], labels: Sequence[Candidate], record: FileRecord, notes: list[str]
) -> list[RawCase]:
    """Return the cases of `images` with the `labels` that have their names."""
    by_key = _by_key(images)
    matches: dict[str, list[_Match]] = defaultdict(list)
    unmatched = []
    for label in labels:
        match = _find_image(label, by_key)
        if match is None:
            if reason := _name_series(label, images):
                record.refused[label.file.path] = f"{printable(label.file.name)} {reason}"
            else:
                record.left_out[label.file.path] = NO_IMAGE
                unmatched.append(label)
            continue
        case, form = match
        if form.class_name is not None and form.class_name.lower() == BACKGROUND:
            record.unused[label.file.path] = "the background needs no files"
        else:
            matches[case].append(_Match(label.file, form))

    by_class = any(_class_count(group) > 1 for group in matches.values())
    label_files = {case: _resolve(case, group, by_class, record) for case, group in matches.items()}
    if by_class:
        notes.append(_describe_classes(label_files.values()))
    cases = _build(images, label_files, record)
    _hint([label for label in unmatched if not record.reveals(label.stem)], cases, notes)
    return cases


def label_by_pattern(
    images: Sequence[Image],
    files: Sequence[RawFile],
    label_patterns: Mapping[str | None, str],
    record: FileRecord,
) -> list[RawCase]:
    """Return the cases of `images` with those of `files` that match a pattern of their names.

    `label_patterns` are by class; None stands for label maps, whose values are the classes.
    """
    ids = {image.id for image in images}
    label_files: dict[str, list[LabelFile]] = defaultdict(list)
    for file in files:
        readings = list(read_by_pattern(file, label_patterns))
        matches = [(name, class_name) for name, class_name in readings if name in ids]
        ignored = file.name.lower().endswith((*SIDECARS, *formats.DATA_SUFFIXES))
        if not readings or ignored:
            continue
        if file.problem:
            record.refused[file.path] = f"{printable(file.name)} {file.problem}"
        if not matches:
            record.left_out[file.path] = NO_IMAGE
        elif len(matches) > 1:
            meanings = ", ".join(" ".join(filter(None, match)) for match in matches)
            record.refused[file.path] = (
                f"{printable(file.name)} matches several names or classes: {printable(meanings)}; "
                "make the patterns of labels more specific"
            )
        else:
            ((name, class_name),) = matches
            label_files[name].append(LabelFile(file.path, class_name))
    order = list(label_patterns)
    for labels in label_files.values():
        labels.sort(
            key=lambda label: (order.index(label.class_name), *_natural(label.path.as_posix()))
        )
    return _build(images, {case: tuple(group) for case, group in label_files.items()}, record)


def _by_key(images: Sequence[Image]) -> dict[Key, str]:
    """Return the ids of images by their keys, and by their ids and names if these are unique."""
    counts = Counter(image.key[1] for image in images)
    by_key = {("", image.key[1]): image.id for image in images if counts[image.key[1]] == 1}
    by_key |= {("", image.id): image.id for image in images}
    by_key |= {image.key: image.id for image in images if image.key[1]}
    return by_key


def _find_image(label: Candidate, by_key: Mapping[Key, str]) -> tuple[str, Form] | None:
    """Return the case that a label file belongs to, and how its name is read."""
    readings = list(forms(label.stem))
    for form in readings:
        if (label.folder, form.base) in by_key:
            return by_key[label.folder, form.base], form
    if not label.folder:
        return None
    if ("", label.folder) in by_key:  # a folder per case: the rest of the name may be a class
        form = next((form for form in readings[1:] if not form.class_name), readings[0])
        class_name = None if form.base == label.folder else form.base
        form = form._replace(class_name=class_name)
        return by_key["", label.folder], form
    for form in readings:  # a folder per class, or of some cases
        if ("", form.base) in by_key:
            class_name = form.class_name or label.folder
            return by_key["", form.base], form._replace(class_name=class_name)
    return None


def _name_series(label: Candidate, images: Sequence[Image]) -> str:
    """Return that a label has the name of a folder with several DICOM series, or ""."""
    names = {label.folder} if label.folder else {form.base for form in forms(label.stem)}
    series = [image for image in images if image.key[0] in names and image.files[0].dicom]
    if not series:
        return ""
    ids = ", ".join(printable(image.id) for image in series[:MAX_HINTS])
    return (
        f"is named like a folder with {len(series)} DICOM series ({ids}); choose one, or "
        "one per channel, with series: in dataset.yaml, or name the label after it"
    )


def _class_count(matches: Iterable[_Match]) -> int:
    return len({match.form.class_name for match in matches} - {None})


def _resolve(
    case: str, matches: Sequence[_Match], by_class: bool, record: FileRecord
) -> tuple[LabelFile, ...]:
    """Return the label files of a case; refuse those that contradict each other.

    There may be one, or several that are numbered; with `by_class`, this holds for every class.
    """
    groups: dict[str | None, list[_Match]] = defaultdict(list)
    for match in sorted(matches, key=lambda match: _natural(match.file.name)):
        groups[match.form.class_name if by_class else None].append(match)
    if by_class:
        for match in groups.pop(None, []):
            record.refused[match.file.path] = (
                f"{printable(match.file.name)} is a label without a class in its name, but other "
                "cases have a file per class; name its class, or remove it"
            )
    for class_name, group in groups.items():
        unnumbered = [match for match in group if not match.form.numbered]
        if len(unnumbered) > 1:
            of_class = f" of the class {printable(class_name)}" if class_name else ""
            names = " and ".join(printable(match.file.name) for match in unnumbered)
            reason = f"the image {printable(case)} has several labels{of_class}: {names}"
            record.refused |= {match.file.path: f"{reason}; keep one" for match in unnumbered}
    label_files = []
    for class_name, group in sorted(groups.items(), key=str):
        label_files += [LabelFile(match.file.path, class_name) for match in group]
    return tuple(label_files)


def _natural(name: str) -> tuple[int, str]:
    """Return a key that sorts x_mask, x_mask_2, x_mask_10."""
    return len(name), name


def _build(
    images: Sequence[Image], label_files: Mapping[str, tuple[LabelFile, ...]], record: FileRecord
) -> list[RawCase]:
    """Return the cases, without files that are refused."""
    cases = []
    for image in images:
        labels = label_files.get(image.id, ())
        if problem := _problem(image):
            record.refused |= problem
            others = [file.path for file in image.files if file.path not in problem]
            for path in (*others, *(label.path for label in labels)):
                record.left_out[path] = "its image is refused"
            continue
        labels = tuple(label for label in labels if label.path not in record.refused)
        dicom = image.files[0].dicom or DicomCase(())
        group = dicom.group or image.id
        cases.append(RawCase(image.id, group, image.image_files, labels, dicom.is_private))
    for case in cases:  # another image with the same id may be refused
        for label in case.labels:
            record.left_out.pop(label.path, None)
    return sorted(cases, key=lambda case: (case.id, case.image))


def _problem(image: Image) -> dict[Path, str]:
    """Return the file that makes an image unusable, with the reason, if there is one."""
    for file in image.files:
        problem = file.problem
        if len(image.id.encode(errors="replace")) > MAX_ID_BYTES:
            problem = f"has a name of more than {MAX_ID_BYTES} bytes; shorten it"
        if problem:
            return {file.path: f"{printable(file.name)} {problem}"}
    return {image.files[0].path: image.problem} if image.problem else {}


def _describe_classes(label_files: Iterable[Sequence[LabelFile]]) -> str:
    """Describe the classes in the names of the label files."""
    counts: Counter[str] = Counter()
    total = 0
    for labels in label_files:
        total += 1
        counts.update({label.class_name for label in labels if label.class_name})
    classes = ", ".join(f"{printable(name)} in {counts[name]}" for name in sorted(counts))
    return f"every class has its own label files: {classes} of {total} labeled cases"


def _hint(unmatched: Sequence[Candidate], cases: Iterable[RawCase], notes: list[str]) -> None:
    """Suggest in `notes` which images the labels without an image may belong to."""
    unlabeled = [case.id for case in cases if not case.labels]
    near = {label.stem: similar_name(label.stem, unlabeled) for label in unmatched[:MAX_HINTS]}
    hints = [
        f"{printable(stem)}: did you mean {printable(name)}?" for stem, name in near.items() if name
    ]
    if hints:
        notes.append(f"labels without an image: {'; '.join(hints)}")
