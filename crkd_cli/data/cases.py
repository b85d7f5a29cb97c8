"""The raw files of a case."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class LabelFile(NamedTuple):
    """A label file of a case."""

    path: Path
    class_name: str | None = None  # the file is a mask of this class; None: its values say


class ImageFile(NamedTuple):
    """A file with an image or a channel of it, or a DICOM series."""

    path: Path  # of a DICOM series: its first file
    slices: tuple[Path, ...] = ()  # all files of a DICOM series
    channel: str | None = None  # its name; None: the file has all channels


class DicomCase(NamedTuple):
    """What the tags of DICOM files say about their case."""

    images: tuple[ImageFile, ...]  # one series, or one per channel
    id: str = ""  # of the case; "": it is named after its files
    group: str = ""  # a pseudonym of the patient
    is_private: bool = False  # the names of its files reveal the patient
    names: tuple[str, ...] = ()  # of its files, relative to the root


@dataclass(frozen=True)
class RawCase:
    """The raw files of one case."""

    id: str
    group: str  # the patient
    images: tuple[ImageFile, ...]  # one with all channels, or one per channel
    # Empty: unlabeled. An h5 file that contains image and label is both.
    labels: tuple[LabelFile, ...] = ()
    is_private: bool = False  # the names of its files reveal the patient

    @property
    def image(self) -> Path:
        """The first image file, which stands for all of them in messages and in the index."""
        return self.images[0].path

    @property
    def image_files(self) -> tuple[Path, ...]:
        """All files of the image."""
        return tuple(path for image in self.images for path in image.slices or (image.path,))


def seed_of(case: str) -> int:
    """Return a seed for the draws of a case, which depends on its id alone."""
    return int.from_bytes(hashlib.sha256(case.encode()).digest()[:8], "big")


def labeled_case(case: str, group: str, image: Path, label: Path | None) -> RawCase:
    """Return a case with one label file, or without."""
    return RawCase(case, group, (ImageFile(image),), () if label is None else (LabelFile(label),))


def find_folder(root: Path, *names: str) -> Path | None:
    """Return `root` or the folder nearest below it that has one of `names`."""
    if root.name in names:
        return root
    matches = [path for name in names for path in root.rglob(name) if path.is_dir()]
    return min(matches, key=lambda path: (len(path.parts), path), default=None)
