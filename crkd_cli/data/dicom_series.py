"""DICOM series: files are grouped by their tags, and sorted by the positions of their slices."""

import hashlib
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crkd_cli.data.cases import ImageFile
from crkd_cli.data.inventory import RawFile
from crkd_cli.data.privacy import patient_words, reveals
from crkd_cli.data.raw.dicom import Tags
from crkd_cli.data.raw.slices import arrange
from crkd_cli.text import printable, shorten

HEX_DIGITS = 10


class DicomFile(NamedTuple):
    """A DICOM file with an image."""

    raw: RawFile
    tags: Tags

    @property
    def folder(self) -> str:
        """The folder of the file, relative to the root."""
        return self.raw.name.rpartition("/")[0]


@dataclass(frozen=True, eq=False)
class Series:
    """The files of a DICOM series, sorted by position, or a file with several frames."""

    files: tuple[DicomFile, ...]
    part: str = ""  # the echo, time point … of a series that contains several volumes
    problem: str = ""  # why it is not a volume: the rest of a sentence that starts with its name

    @property
    def tags(self) -> Tags:
        """The tags of the first file."""
        return self.files[0].tags

    @property
    def image(self) -> ImageFile:
        """The files as a channel of a case."""
        paths = tuple(file.raw.path for file in self.files)
        return ImageFile(paths[0], paths)

    @property
    def title(self) -> str:
        """The description in quotes, unless it is missing or reveals the patient."""
        description = self.tags.description
        if reveals(description, self.words):
            return "with the name or ID of the patient as description"
        return repr(shorten(description)) if description else "without a description"

    @property
    def folder(self) -> str:
        """The folder that contains all files, relative to the root; "" for the root."""
        folders = {file.folder for file in self.files}
        return folders.pop() if len(folders) == 1 else posixpath.commonpath(list(folders))

    @property
    def unique(self) -> str:
        """The UID; if it was removed, a digest of the first file."""
        if self.tags.series:
            return self.tags.series
        return hashlib.sha256(self.files[0].raw.path.read_bytes()).hexdigest()

    @property
    def pseudonym(self) -> str:
        """A name that tells nothing about the patient."""
        unique = self.unique
        if len(self.files) == 1 and (len(self.tags.frames) > 1 or not _is_placed(self.files)):
            unique = self.tags.instance or unique  # the series has further images
        return f"series-{pseudonym(unique + self.part)}"

    @property
    def size(self) -> tuple[int, ...]:
        """Columns, rows, and the number of slices of a volume."""
        count = sum(len(file.tags.frames) for file in self.files)
        return (*self.tags.size, count) if count > 1 else self.tags.size

    @property
    def is_private(self) -> bool:
        """Whether the path of a file contains a part of the patient's name or ID."""
        words = self.words
        folders = {file.folder.lower() for file in self.files}
        if any(word in folder for word in words for folder in folders):
            return True
        return any(reveals(file.raw.path.name, words) for file in self.files)

    @property
    def words(self) -> frozenset[str]:
        """The parts of the patient's name and ID, in lower case."""
        return patient_words(self.tags.patient_name, self.tags.patient)


def group_series(images: Iterable[DicomFile]) -> list[Series]:
    """Return the series, sorted by the names of their first files."""
    groups: dict[tuple[str, ...], list[DicomFile]] = defaultdict(list)
    for image in images:
        unique = image.tags.series or image.folder
        is_alone = len(image.tags.frames) > 1 or not _is_placed([image])
        groups[(unique, image.raw.name) if is_alone else (unique,)].append(image)
    return [series for group in groups.values() for series in _parts(group)]


def _is_placed(files: Sequence[DicomFile]) -> bool:
    """Tell whether a file states its position, as a slice does and a picture does not."""
    return all(frame.position is not None for file in files for frame in file.tags.frames)


def _parts(files: list[DicomFile]) -> list[Series]:
    """Return the volumes in a series: one, or one for each echo, acquisition or time point."""
    if len(files) == 1:
        problem = arrange(files[0].tags.frames, are_ordered=True).problem
        return [Series(tuple(files), problem=problem)]
    copies = Counter(file.tags.instance for file in files)
    duplicates = [file for file in files if copies[file.tags.instance] > 1 and file.tags.instance]
    if duplicates:
        names = " and ".join(file.raw.name for file in duplicates[:2])
        problem = f"contains a slice twice ({printable(names)}); remove one of them"
        return [Series(tuple(files), problem=problem)]
    if _have_own_places(files):
        return [_arranged(files)]
    for number in range(len(files[0].tags.parts)):
        groups: dict[str, list[DicomFile]] = defaultdict(list)
        for file in files:
            groups[file.tags.parts[number]].append(file)
        if len(groups) > 1 and all(map(_have_own_places, groups.values())):
            return [_arranged(group, part) for part, group in sorted(groups.items())]
    return [_arranged(files)]


def _have_own_places(files: Sequence[DicomFile]) -> bool:
    return len({file.tags.frames[0].position for file in files}) == len(files)


def _arranged(files: Sequence[DicomFile], part: str = "") -> Series:
    """Return a series with its slices sorted by position."""
    if len({(file.tags.size, file.tags.color) for file in files}) > 1:
        problem = "has slices of several sizes or colors; put those of one size into a folder"
        return Series(tuple(files), part, problem)
    stack = arrange([file.tags.frames[0] for file in files])
    return Series(tuple(files[number] for number in stack.order), part, stack.problem)


def pseudonym(text: str) -> str:
    """Return a few digits that stand for a UID."""
    return hashlib.sha256(text.encode()).hexdigest()[:HEX_DIGITS]
