"""Decide which classes the label files of a dataset contain."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from crkd_cli.data.labels import (
    ClassAssignment,
    Counts,
    LabelValues,
    Numbers,
    describe_classes,
    is_blurred,
)
from crkd_cli.data.raw import formats
from crkd_cli.data.splits import preview
from crkd_cli.data.store import ClassInfo
from crkd_cli.errors import CrkdError, pluralize

MAX_INFERRED = 64  # classes; more must be stated
MAX_CLASSES = 2**15 - 1  # class numbers are int16 at most
# Label files with no more different values, such as {0, 1, 2, 255}, are blurred masks only if the
# values between 0 and 255 are rare.
MAX_VALUES_NOT_BLURRED = 16
MAX_EDGE = 0.25  # relative to the number of pixels with 255
BACKGROUND = ClassInfo(name="background", values=(0,))

Stated = Mapping[str, int | Sequence[int]]  # classes of a description: name → value or values


def decide_classes(
    labels: Sequence[LabelValues],
    stated: Stated | None,
    ignore: int | None,
    unreadable: Sequence[CrkdError] = (),
) -> ClassAssignment:
    """Decide what the values in all label files of a dataset mean; 0 is the background.

    - If classes are `stated`, every value must belong to one of them.
    - If every file is a mask of one class, the classes are numbered in the order of their names.
    - If no file has more than one value besides 0, there is one class, even if that value differs
      between files.
    - Otherwise, every value is a class. Values that never occur in the same file may have the same
      meaning (0 and 1 in some files, 0 and 255 in others), so they are an error unless the values
      are 1, 2, … without a gap.

    Pixels with the value `ignore` are ignored. Blurred masks are read as masks of 0 and 255.
    `unreadable` are the errors of the labels that could not be read. Raises CrkdError if the files
    contradict each other, or if they contain no object.
    """
    are_masks = any(label.class_name is not None for label in labels)
    binary = are_masks or stated is None or len(stated) == 1
    files, notes = _read_values(labels, ignore, binary)
    _check_compression(files)
    if are_masks:
        classes, tables = _classes_of_masks(files, stated)
    elif stated is not None:
        classes = stated_classes(stated)
        tables = _number_values(files, classes)
    else:
        classes = _infer(files, unreadable)
        tables = _number_values(files, classes)
        notes += _note_inferred(files, classes)
    _check_foreground(files, tables, unreadable)
    notes += [
        *_note_ignored(labels, ignore),
        *_note_absent(classes, tables),
        *_note_no_background(files, tables),
    ]
    numbers = {
        file.label.path: _with_ignored(file, table, ignore, len(classes))
        for file, table in zip(files, tables, strict=True)
    }
    return ClassAssignment(classes, numbers, tuple(notes))


def stated_classes(stated: Stated) -> tuple[ClassInfo, ...]:
    """Return the classes of a description, the background first."""
    if len(stated) >= MAX_CLASSES:
        raise CrkdError(f"{len(stated)} classes are too many: there can be {MAX_CLASSES - 1}")
    values = {
        name: (given,) if isinstance(given, int) else tuple(given) for name, given in stated.items()
    }
    background = values.pop(BACKGROUND.name, ())
    merged = ClassInfo(name=BACKGROUND.name, values=tuple(dict.fromkeys((0, *background))))
    return merged, *(ClassInfo(name=name, values=members) for name, members in values.items())


@dataclass(frozen=True)
class _File:
    """A label file: its values without ignored ones, with the blur of masks undone."""

    label: LabelValues
    meant: Mapping[int, int]  # value in the file → value meant

    @property
    def class_name(self) -> str | None:
        return self.label.class_name

    @property
    def foreground(self) -> set[int]:
        return set(self.meant.values()) - {0}


def _read_values(
    labels: Sequence[LabelValues], ignore: int | None, binary: bool
) -> tuple[list[_File], list[str]]:
    """Remove ignored values, and undo the blur of `binary` masks of 0 and 255: (files, notes)."""
    counts = [
        {value: count for value, count in label.counts.items() if value != ignore}
        for label in labels
    ]
    if not binary or not _are_blurred(labels, counts):
        meanings = [{value: value for value in values} for values in counts]
        return [_File(*pair) for pair in zip(labels, meanings, strict=True)], []
    files, dark, gray = [], [], []
    for label, values in zip(labels, counts, strict=True):
        meant = {value: value for value in values}
        if max(values, default=0) >= 128:
            meant = {value: 255 if value >= 128 else 0 for value in values}
            if values.keys() - {0, 255}:
                gray.append(label.path.name)
        elif _is_jpeg(label) and max(values, default=0) <= 32 and any(values):
            meant = dict.fromkeys(values, 0)
            dark.append(label.path.name)
        files.append(_File(label, meant))
    notes = []
    if gray:
        notes.append(
            "label files with gray edges, read as masks of 0 and 255 (values below 128 are "
            f"background): {_names(gray)}"
        )
    if dark:
        notes.append(f"label files read as empty masks (no value above 32): {_names(dark)}")
    return files, notes


def _check_compression(files: Sequence[_File]) -> None:
    """Raise CrkdError if compression has changed the values of a label map with several classes."""
    for file in files:
        if _is_jpeg(file.label) and len(file.foreground) > 1:
            raise CrkdError(
                f"{file.label.path} has {len(file.foreground)} values besides 0, but compression "
                "changes values: only masks of 0 and 255 may be JPG files; save the label maps as "
                "PNG (or are images and labels swapped?)"
            )


def _are_blurred(labels: Sequence[LabelValues], counts: Sequence[Counts]) -> bool:
    """Tell whether the label files were masks of 0 and 255 before they were compressed or resized.

    Files with dark values only are left out: they may be masks of 0 and 1.
    """
    total: Counter[int] = Counter()
    for values in counts:
        if max(values, default=0) >= 128 or not any(values):
            total.update(values)
    few = len(total) <= MAX_VALUES_NOT_BLURRED and not any(map(_is_jpeg, labels))
    if few and not _has_gray_edges(total):
        return False
    bright = sum(count for value, count in total.items() if value >= 223)
    between = sum(count for value, count in total.items() if 32 < value < 223)
    return bool(total) and is_blurred(total) and bright >= between


def _has_gray_edges(counts: Counts) -> bool:
    """Tell whether values near 0 and near 255 occur besides these two, and are rare.

    Masks that were JPG files before have them.
    """
    edges = {value: count for value, count in counts.items() if value not in (0, 255)}
    near_both = min(edges, default=255) <= 32 and max(edges, default=0) >= 223
    return near_both and sum(edges.values()) <= MAX_EDGE * counts.get(255, 0)


def _is_jpeg(label: LabelValues) -> bool:
    return formats.suffix(label.path) in (".jpg", ".jpeg")


def _infer(files: Sequence[_File], unreadable: Sequence[CrkdError]) -> tuple[ClassInfo, ...]:
    values = sorted(set().union(*(file.foreground for file in files)))
    if not values:
        raise CrkdError(_why_only_background(unreadable))
    if all(len(file.foreground) <= 1 for file in files):
        held = Counter(value for file in files for value in file.foreground)
        by_frequency = sorted(held, key=lambda value: (-held[value], value))
        return BACKGROUND, _class_of(by_frequency)
    if len(values) > MAX_INFERRED:
        raise CrkdError(_too_many_values(values))
    if values != list(range(1, len(values) + 1)) and not _occur_together(files):
        raise CrkdError(
            f"the label files do not agree on their values: {_list_values(files, values)}; save "
            "all with the same values, or list the classes in dataset.yaml, such as "
            f"classes: {{organ: [{values[0]}, {values[-1]}]}}"
        )
    return BACKGROUND, *(_class_of([value]) for value in values)


def _class_of(values: Sequence[int]) -> ClassInfo:
    return ClassInfo(name=f"class {values[0]}", values=tuple(values))


def _occur_together(files: Sequence[_File]) -> bool:
    """Tell whether files with two or more values link all values, directly or through others."""
    linked: list[set[int]] = []
    for file in files:
        if not file.foreground:
            continue
        joined = file.foreground.union(*(group for group in linked if group & file.foreground))
        linked = [group for group in linked if not group & file.foreground] + [joined]
    return len(linked) <= 1


def _number_values(files: Sequence[_File], classes: Sequence[ClassInfo]) -> list[Numbers]:
    """Return the class number of every value meant, by file.

    Raises CrkdError if a value is not a class.
    """
    numbers = {value: number for number, info in enumerate(classes) for value in info.values}
    unknown = sorted(set().union(*(file.foreground for file in files)) - set(numbers))
    if unknown:
        raise CrkdError(
            f"label files have values that are not a class: {_list_values(files, unknown)}; "
            f"the description has the classes {describe_classes(classes)}; add the values to "
            "them, or give one with --ignore"
        )
    return [{value: numbers[value] for value in file.meant.values()} for file in files]


def _classes_of_masks(
    files: Sequence[_File], stated: Stated | None
) -> tuple[tuple[ClassInfo, ...], list[Numbers]]:
    """Return the classes of files that are masks of one class each, and their numbers by file."""
    others = [file.label.path.name for file in files if file.class_name is None]
    if others:
        raise CrkdError(
            f"some label files are masks of one class, such as {_first_mask(files)}, but not "
            f"{_names(others)}; say which file is which with labels: in dataset.yaml"
        )
    for file in files:
        if len(file.foreground) > 1:
            values = ", ".join(map(str, sorted(file.foreground)))
            raise CrkdError(
                f"{file.label.path} is a mask of {file.class_name}, but has several values: "
                f"{values}; a mask has 0 and one other value"
            )
    if stated is None:
        names = sorted({file.class_name or "" for file in files} - {BACKGROUND.name})
        stated = {name: number for number, name in enumerate(names, start=1)}
    classes = stated_classes(stated)
    by_name = {info.name: number for number, info in enumerate(classes)}
    unknown = [file for file in files if file.class_name not in by_name]
    if unknown:
        raise CrkdError(
            f"{unknown[0].label.path} is a mask of {unknown[0].class_name}, which is not a class; "
            f"the description has the classes {describe_classes(classes)}"
        )
    return classes, [
        {value: by_name[file.class_name or ""] if value else 0 for value in file.meant.values()}
        for file in files
    ]


def _first_mask(files: Sequence[_File]) -> str:
    file = next(file for file in files if file.class_name is not None)
    return f"{file.label.path.name} of {file.class_name}"


def _with_ignored(file: _File, table: Numbers, ignore: int | None, class_count: int) -> Numbers:
    numbers = {value: table[meant] for value, meant in file.meant.items()}
    if ignore is not None and ignore in file.label.counts:
        numbers[ignore] = class_count
    return numbers


def _check_foreground(
    files: Sequence[_File], tables: Sequence[Numbers], unreadable: Sequence[CrkdError]
) -> None:
    """Raise CrkdError if no object is labeled: all is background, or every file is constant."""
    present = set().union(*(table.values() for table in tables))
    if present <= {0}:
        raise CrkdError(_why_only_background(unreadable))
    if len(present) == 1 and any(0 in file.label.counts.keys() - file.meant for file in files):
        raise CrkdError(
            "without the ignored value 0, label files have one class and no background; ignore "
            "another value, or state the background in dataset.yaml: classes: {background: 1, …}"
        )
    constant = all(len(file.label.counts) == 1 for file in files)
    if constant or len(present) == 1:
        values = sorted(set().union(*(file.meant.values() for file in files)))
        raise CrkdError(
            f"no label file contains an object: each has a single value "
            f"({_list_values(files, values)}); give label maps with 0 for the background "
            "(or is the object in an alpha channel?)"
        )


def _note_inferred(files: Sequence[_File], classes: Sequence[ClassInfo]) -> list[str]:
    foreground = classes[1:]
    if len(foreground[0].values) > 1:
        return [
            "the foreground value differs between label files: "
            f"{_list_values(files, foreground[0].values)}; all are read as one class; if they are "
            "several classes, list them in dataset.yaml under classes"
        ]
    return [*_note_rare_values(files, foreground), *_note_unclear(foreground)]


def _note_unclear(classes: Sequence[ClassInfo]) -> Iterable[str]:
    """Note the values that usually mark unclear pixels: negative ones, and 255 after small ones."""
    *others, largest = sorted(info.value for info in classes)
    if not others:
        return
    unclear = [value for value in others if value < 0]
    if largest == 255 and others[-1] <= MAX_INFERRED:
        unclear.append(largest)
    for value in unclear:
        yield f"{value} is a class; if it marks unclear pixels, add --ignore {value}"


def _note_rare_values(files: Sequence[_File], classes: Iterable[ClassInfo]) -> Iterable[str]:
    """Note the classes that occur in a single label file of several: they may be mistakes."""
    for info in classes:
        holders = [file.label for file in files if info.value in file.foreground]
        if len(holders) == 1 and len(files) > 2:
            count = holders[0].counts.get(info.value, 0)
            yield (
                f"{info.name} is in 1 of {len(files)} labels "
                f"({holders[0].path.name}; pixels or voxels: {count}): a stray value?"
            )


def _note_ignored(labels: Sequence[LabelValues], ignore: int | None) -> Iterable[str]:
    if ignore is None:
        return
    counts = [label.counts[ignore] for label in labels if ignore in label.counts]
    if counts:
        yield (
            f"ignored pixels or voxels (value {ignore}): {sum(counts)} in {len(counts)} of "
            f"{pluralize(len(labels), 'label')}"
        )
    else:
        yield f"no label has the value to ignore, {ignore}"


def _note_absent(classes: Sequence[ClassInfo], tables: Sequence[Numbers]) -> Iterable[str]:
    present = set().union(*(table.values() for table in tables))
    absent = [info for number, info in enumerate(classes) if number and number not in present]
    if absent:
        yield f"classes that are in no label: {describe_classes(absent)}"


def _note_no_background(files: Sequence[_File], tables: Sequence[Numbers]) -> Iterable[str]:
    without = [
        file.label.path.name
        for file, table in zip(files, tables, strict=True)
        if 0 not in table.values()
    ]
    if len(without) == len(files):
        value = min(value for file in files for value in file.meant.values())
        yield (
            "no label has background (0); if one of the values is the background, state it in "
            f"dataset.yaml, such as classes: {{background: {value}, …}}"
        )
    elif without:
        yield f"labels without background (0): {_names(without)}"


def _list_values(files: Sequence[_File], values: Sequence[int]) -> str:
    """List the label files of each value: "1 in 2 files (a.png, b.png); 255 in …"."""
    parts = []
    for value in values[:5]:
        names = [file.label.path.name for file in files if value in file.meant.values()]
        parts.append(f"{value} in {pluralize(len(names), 'file')} ({preview(names, 2)})")
    others = len(values) - 5
    if others > 0:
        parts.append(f"and {pluralize(others, 'other value')}")
    return "; ".join(parts)


def _names(names: Sequence[str]) -> str:
    return f"{len(names)} ({preview(names)})"


def _why_only_background(unreadable: Sequence[CrkdError]) -> str:
    if unreadable:
        return f"no label can be used: {unreadable[0]} (or are images and labels swapped?)"
    return (
        "no label contains more than background: every value is 0; "
        "give label maps with 1, 2, … for classes"
    )


def _too_many_values(values: Sequence[int]) -> str:
    examples = ", ".join(map(str, values[:6]))
    return (
        f"the label files contain {len(values)} different values besides 0 ({examples} …), too "
        "many to be classes unless dataset.yaml lists them (classes: {name: value, …}); "
        "or are images and labels swapped?"
    )
