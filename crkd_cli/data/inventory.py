"""The inventory of a raw folder: every file, and how it is used.

Sources pair the files from `list_files`, and record in a `FileRecord` which ones they leave out or
refuse. `take_inventory` combines both with the cases, so that every file is accounted for.
"""

import os
import stat
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from crkd_cli.data.cases import DicomCase, RawCase
from crkd_cli.data.privacy import reveals
from crkd_cli.data.raw import formats
from crkd_cli.errors import CrkdError, pluralize
from crkd_cli.text import channel_title, printable

Status = Literal["used", "unlabeled", "left out", "refused"]
MAX_LINKED_DEPTH = 2  # links to folders are followed in the root and in its folders
MAX_NAMES = 20  # of a group, in the text form of the inventory
WIDTH = 79  # of that text
MAX_NOTED = 5  # of a group, in a notice

_Identity = tuple[int, int]  # of a folder: device and inode


class RawFile(NamedTuple):
    """A file below the root, or a folder that is not searched."""

    path: Path
    name: str  # relative to the root, with /, in Unicode's composed form (NFC)
    problem: str = ""  # why it cannot be read: the rest of a sentence that starts with its name
    skipped: str = ""  # why it is ignored: it is hidden, or a folder
    dicom: DicomCase | None = None  # it stands for all files of a DICOM series or case

    @property
    def is_image(self) -> bool:
        """Whether it has the format of an image, by its name unless it is DICOM."""
        hidden = self.path.name.startswith(".")
        return self.dicom is not None or bool(formats.suffix(self.path) and not hidden)

    @property
    def private_id(self) -> str:
        """The id of a DICOM case that is not named after its files, or ""."""
        return "" if self.dicom is None else self.dicom.id


class SeriesFile(NamedTuple):
    """How a file of a DICOM series is listed."""

    first: Path  # the file whose role all others share
    series: str  # the name of the series, which stands for all files in texts
    alias: str = ""  # shown in place of its name, which reveals the patient


@dataclass
class FileRecord:
    """Files that are not the image or a label of a case, with the reasons."""

    used: dict[Path, str] = field(default_factory=dict)  # what for
    left_out: dict[Path, str] = field(default_factory=dict)  # why; the user should know
    unused: dict[Path, str] = field(default_factory=dict)  # why; not worth a notice
    refused: dict[Path, str] = field(default_factory=dict)  # why: a sentence
    series: dict[Path, SeriesFile] = field(default_factory=dict)  # the files of DICOM series
    patient_words: set[str] = field(default_factory=set)  # of DICOM: see `patient_words`

    def reveals(self, text: str) -> bool:
        """Tell whether a text contains a part of the name or the ID of a DICOM patient."""
        return reveals(text, self.patient_words)

    def __contains__(self, path: Path) -> bool:
        return any(path in part for part in (self.used, self.left_out, self.unused, self.refused))


class FileEntry(NamedTuple):
    """A line of the inventory."""

    path: Path
    file: str  # relative to the root
    status: Status
    what: str  # image, label or another singular noun; or why it is not used
    case: str | None = None
    notable: bool = False  # the user should know that it is left out
    series: str = ""  # the name of the DICOM series that it belongs to


class Inventory(NamedTuple):
    """All files of a raw folder, sorted by name."""

    entries: tuple[FileEntry, ...]

    def tree(self) -> list[dict[str, Any]]:
        """Return the entries for JSON."""
        return [
            {
                "file": entry.file,
                "status": entry.status,
                "what": entry.what,
                "case": entry.case,
            }
            for entry in self.entries
        ]

    def notices(self) -> list[str]:
        """Return notices about files that are left out although they look relevant."""
        groups: dict[str, list[FileEntry]] = {}
        for entry in self.entries:
            if entry.notable:
                groups.setdefault(entry.what, []).append(entry)
        notices = []
        for reason, entries in groups.items():
            names = _names(entries)
            text = ", ".join(names[:MAX_NOTED])
            if len(names) > MAX_NOTED:
                text += f" and {len(names) - MAX_NOTED} more"
            notices.append(f"left out ({reason}): {text}")
        return notices

    def lines(self) -> list[str]:
        """Return the inventory as text: counts of what is used, and the names of the rest."""
        by_role: dict[tuple[Status, str], list[FileEntry]] = {}
        for entry in self.entries:
            by_role.setdefault((entry.status, entry.what), []).append(entry)
        groups = {role: _names(entries) for role, entries in by_role.items()}
        used = {noun: names for (status, noun), names in groups.items() if status == "used"}
        counts = [_count(len(names), printable(noun)) for noun, names in used.items()]
        lines = [f"used: {', '.join(counts) or 'no file'}"]
        lines += _group("unlabeled", self._with("unlabeled"))
        for (status, what), names in groups.items():
            if status == "left out":
                lines += _group(f"left out ({what})", names)
        return lines + _group("refused (see the problems)", self._with("refused"))

    def _with(self, status: Status) -> list[str]:
        return _names([entry for entry in self.entries if entry.status == status])


def list_files(root: Path, depth: int | None = None) -> list[RawFile]:
    """Return all files below `root`, sorted by name. Hidden folders are not searched.

    `depth` limits the levels of subfolders. Raises CrkdError if a folder cannot be read.
    """
    files: list[RawFile] = []
    folders = [_Folder(root, "", (_identity(root),))]
    while folders:
        folder = folders.pop()
        for path, entry in _entries(folder, files):
            name = folder.prefix + unicodedata.normalize("NFC", entry.name)
            if not _is_folder(entry):
                files.append(_file(entry, path, name))
            elif entry.name.startswith("."):
                files.append(RawFile(path, f"{name}/", skipped="a hidden folder"))
            elif depth is not None and len(folder.ancestors) > depth:
                files.append(RawFile(path, f"{name}/", skipped="a folder nested too deeply"))
            elif entry.is_symlink() and not folder.may_follow(path):
                files.append(RawFile(path, f"{name}/", skipped="a link to a folder, not followed"))
            else:
                ancestors = (*folder.ancestors, _identity(path))
                folders.append(_Folder(path, f"{name}/", ancestors))
    return sorted(files, key=lambda file: file.name)


def is_text(name: str) -> bool:
    """Tell whether a file name can be written as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def take_inventory(
    files: Iterable[RawFile], cases: Iterable[RawCase], record: FileRecord, unused: str
) -> Inventory:
    """Return how every file is used; `unused` is the reason for files that nothing mentions."""
    roles = {path: _Role("left out", reason) for path, reason in record.unused.items()}
    for path, reason in record.left_out.items():
        roles[path] = _Role("left out", reason, notable=True)
    roles |= {path: _Role("used", purpose) for path, purpose in record.used.items()}
    cases = list(cases)
    for case in cases:
        labels = [label.path for label in case.labels]
        roles |= {path: _Role("used", "label", case.id) for path in labels}
        what = "labeled image" if case.image in labels else "image"
        for image in case.images:
            content = what if image.channel is None else f"{what}, {channel_title(image.channel)}"
            for path in image.slices or (image.path,):
                roles[path] = _Role("used" if labels else "unlabeled", content, case.id)
    for path, reason in record.refused.items():
        role = roles.get(path)
        roles[path] = _Role("refused", reason, role.case if role else None)
    entries = []
    private = {label.path: case.id for case in cases if case.is_private for label in case.labels}
    for file in files:
        listed = record.series.get(file.path, SeriesFile(file.path, ""))
        role = roles.get(listed.first, _Role("left out", unused))
        role = roles.get(file.path, role)
        if file.skipped:
            role = _Role("left out", file.skipped)
        name = listed.alias or file.name
        if file.path not in record.series:
            name = _without_patients(file.name, record)
        if file.path in private:
            name = f"label of {private[file.path]}"
        entries.append(FileEntry(file.path, name, *role, series=listed.series))
    return Inventory(tuple(entries))


def _without_patients(name: str, record: FileRecord) -> str:
    """Return the name of a file, without the parts that are named after a patient."""
    folder, slash, file = name.rpartition("/")
    if record.reveals(folder):
        return "(a file in a folder named after a patient)"
    return f"{folder}{slash}(a file named after a patient)" if record.reveals(file) else name


def _names(entries: Iterable[FileEntry]) -> list[str]:
    """Return the names of files for a text, in which a DICOM series has one name."""
    counts = Counter(entry.series or entry.file for entry in entries)
    names = []
    for name, count in counts.items():
        files = f" ({count} files)" if count > 1 else ""
        names.append(f"{printable(name)}{files}")
    return names


class _Role(NamedTuple):
    """How a file is used."""

    status: Status
    what: str
    case: str | None = None
    notable: bool = False


def _count(count: int, what: str) -> str:
    """Return "2 labels", or "2 images (channel T1)"."""
    noun, comma, detail = what.partition(", ")
    text = pluralize(count, noun)
    return f"{text} ({detail})" if comma else text


def _group(title: str, names: list[str]) -> list[str]:
    """Return the lines of a group of files, with at most MAX_NAMES names."""
    if not names:
        return []
    text = ", ".join(names[:MAX_NAMES])
    if len(names) > MAX_NAMES:
        text += f" … and {len(names) - MAX_NAMES} more (--json lists all)"
    wrapped = textwrap.wrap(
        text,
        WIDTH,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [f"{title}: {pluralize(len(names), 'file')}", *wrapped]


class _Folder(NamedTuple):
    """A folder to list."""

    path: Path
    prefix: str  # of the names in it
    ancestors: tuple[_Identity, ...]  # the root and all folders down to this one

    def may_follow(self, link: Path) -> bool:
        """Tell whether a link to a folder is near the root and does not lead in a circle."""
        return len(self.ancestors) <= MAX_LINKED_DEPTH and _identity(link) not in self.ancestors


def _identity(folder: Path) -> _Identity:
    """Return the identity of a folder, which links to it share."""
    try:
        status = folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from None
    return status.st_dev, status.st_ino


def _entries(folder: _Folder, files: list[RawFile]) -> Iterator[tuple[Path, os.DirEntry[str]]]:
    """Yield the entries of a folder. An empty folder is added to `files` itself."""
    try:
        with os.scandir(folder.path) as listing:
            entries = list(listing)
    except OSError as error:
        raise _unreadable(folder.path, error) from None
    if not entries and folder.prefix:
        files.append(RawFile(folder.path, folder.prefix, skipped="an empty folder"))
    for entry in entries:
        yield folder.path / entry.name, entry


def _unreadable(folder: Path, error: OSError) -> CrkdError:
    reason = error.strerror or error
    return CrkdError(f"{folder} cannot be read: {reason}; change its permissions, or remove it")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _file(entry: os.DirEntry[str], path: Path, name: str) -> RawFile:
    if entry.name.startswith("."):
        return RawFile(path, name, skipped="hidden")
    if not is_text(name):
        return RawFile(path, name, "has a name that is not UTF-8; rename it")
    try:
        mode = entry.stat().st_mode
    except OSError:
        problem = "is a link to a file that does not exist; get the file, or remove the link"
        return RawFile(path, name, problem if entry.is_symlink() else "cannot be read; remove it")
    if not stat.S_ISREG(mode):
        return RawFile(path, name, "is not a regular file; remove it")
    return RawFile(path, name)
