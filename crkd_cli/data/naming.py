"""Interpret the names of image files: masks, channels, and the ids of cases."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from crkd_cli.data import patterns
from crkd_cli.data.inventory import RawFile
from crkd_cli.data.raw import formats

MASK_WORDS = ("segmentation", "labels", "label", "masks", "mask", "seg", "gt")
_WORD = rf"[ _.-](?:{'|'.join(MASK_WORDS)})"
_MASK = re.compile(rf"(?P<base>.+){_WORD}(?:[ _.-]?\(?(?P<number>\d+)\)?)?", re.IGNORECASE)
_CLASS_MASK = re.compile(
    rf"(?P<base>.+?){_WORD}[ _.-](?P<name>[^\W\d_].*?)(?:[ _.-](?P<number>\d+))?", re.IGNORECASE
)
CHANNEL_DIGITS = 4
_CHANNEL = re.compile(rf"(.+)_[0-9]{{{CHANNEL_DIGITS}}}")

Key = tuple[str, str]  # folder, and name without suffix, channel or mask word


class Candidate(NamedTuple):
    """A file with the format of an image, at most one folder below that of the images or labels."""

    file: RawFile
    folder: str  # below that folder; "" in it
    stem: str

    @classmethod
    def of_dicom(cls, file: RawFile, prefix: str) -> "Candidate":
        """Return a DICOM image below the folder `prefix`, however deep."""
        parts = file.name[len(prefix) :].split("/")
        if parts[-1] == file.path.name:
            parts[-1] = formats.stem(file.path)
        folder, *others = parts
        return cls(file, folder, "_".join(others)) if others else cls(file, "", folder)

    @property
    def key(self) -> Key:
        """Where the file lies, and its name without suffix."""
        return self.folder, self.stem


class Form(NamedTuple):
    """A way to read a file name as the name of a label."""

    base: str  # the image's name
    numbered: bool = False  # one of several masks of an image
    class_name: str | None = None


def forms(stem: str) -> Iterator[Form]:
    """Yield the ways to read a name as that of a label, the most likely first.

    For example, x_mask_1 is a label of x_mask_1, else a numbered mask of x; x_mask_liver is a label
    of x_mask_liver, else the mask of the class liver of x.
    """
    yield Form(stem)
    if mask := _MASK.fullmatch(stem):
        yield Form(mask["base"], numbered=mask["number"] is not None)
    if mask := _CLASS_MASK.fullmatch(stem):
        yield Form(mask["base"], numbered=mask["number"] is not None, class_name=mask["name"])


def label_keys(labels: Iterable[Candidate]) -> set[Key]:
    """Return the keys of all images that `labels` may belong to."""
    keys = set()
    for label in labels:
        for form in forms(label.stem):
            keys |= {(label.folder, form.base), ("", form.base)}
    return keys


def split_masks(
    images: Sequence[Candidate], labeled: set[Key]
) -> tuple[list[Candidate], list[Candidate]]:
    """Return the images, and the masks among them by their names.

    A file that has a label, because its key is in `labeled`, is always an image.
    """
    keys = {image.key for image in images}
    kept: list[Candidate] = []
    masks: list[Candidate] = []
    for image in images:
        _, *others = forms(image.stem)
        has_label = image.key in labeled or ("", image.stem) in labeled
        is_mask = not has_label and any(
            form.class_name is None or (image.folder, form.base) in keys for form in others
        )
        if is_mask:
            masks.append(image)
        else:
            kept.append(image)
    return kept, masks


def read_by_pattern(
    file: RawFile, by_class: Mapping[str | None, str]
) -> Iterator[tuple[str, str | None]]:
    """Yield (image name, class) for every way to read the name of a label by patterns."""
    if file.skipped:
        return
    for class_name, pattern in by_class.items():
        for name in patterns.match(pattern, file.name, "name"):
            yield name, class_name


def channel_groups(images: Iterable[Candidate], labeled: set[Key]) -> dict[Key, list[Candidate]]:
    """Return the files of every case whose files are numbered by channel, as nnU-Net does.

    The numbers are channels if there is a file _0000 and the labels lack the number. Without a
    label, or without a file _0000, the other cases decide.
    """
    channels, undecided = {}, {}
    has_frames = False
    for key, group in numbered_files(images).items():
        is_labeled = key in labeled
        has_first = any(channel_number(image) == 0 for image in group)
        if any(image.key in labeled for image in group):
            has_frames = True
        elif has_first and is_labeled:
            channels[key] = group
        elif has_first or is_labeled:
            undecided[key] = group
    if channels and not has_frames:
        return channels | undecided
    return channels


def numbered_files(images: Iterable[Candidate]) -> dict[Key, list[Candidate]]:
    """Return the files whose names end in a number of four digits, by the rest of their names."""
    numbered: dict[Key, list[Candidate]] = defaultdict(list)
    for image in images:
        if name := _CHANNEL.fullmatch(image.stem):
            numbered[image.folder, name[1]].append(image)
    return numbered


def channel_number(image: Candidate) -> int:
    """Return the number at the end of a name."""
    return int(image.stem[-CHANNEL_DIGITS:])


def with_channel_number(name: str, number: int) -> str:
    """Return a file name with another number of a channel."""
    suffix = formats.suffix(Path(name))
    stem = name[: len(name) - len(suffix) - CHANNEL_DIGITS]
    return f"{stem}{number:0{CHANNEL_DIGITS}}{name[len(name) - len(suffix) :]}"


def case_ids(images: Iterable[Key]) -> list[str]:
    """Return the id of the case of every image.

    It is the name of the file, or of the folder if that contains no other image, else both. The
    folder is omitted if the name of the file begins with it.
    """
    keys = list(images)
    per_folder = Counter(folder for folder, _ in keys)
    ids = []
    for folder, stem in keys:
        if not folder:
            ids.append(stem)
        elif per_folder[folder] == 1:
            ids.append(folder)
        elif re.match(rf"{re.escape(folder)}[ _.-]", stem):
            ids.append(stem)
        else:
            ids.append(f"{folder}_{stem}")
    return ids


def similar_name(name: str, names: Iterable[str]) -> str | None:
    """Return the most similar of `names` that contain the same numbers, or None."""
    numbers = _numbers(name)
    close = {other.lower(): other for other in names if _numbers(other) == numbers}
    near = get_close_matches(name.lower(), close, n=1, cutoff=0.8)
    return close[near[0]] if near else None


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"[0-9]+", name)]
