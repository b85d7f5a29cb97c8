"""The raw files of a case."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class LabelFile(NamedTuple):
    """A label file of a case."""

    path: Path
    class_name: str | None = None  # the file is a mask of this class; None: its values say


@dataclass(frozen=True)
class RawCase:
    """The raw files of one case."""

    id: str
    group: str  # the patient
    image: Path
    # Empty: unlabeled. An h5 file that contains image and label is both.
    labels: tuple[LabelFile, ...] = ()


def labeled_case(case: str, group: str, image: Path, label: Path | None) -> RawCase:
    """Return a case with one label file, or without."""
    return RawCase(case, group, image, () if label is None else (LabelFile(label),))


def find_folder(root: Path, *names: str) -> Path | None:
    """Return `root` or the folder nearest below it that has one of `names`."""
    if root.name in names:
        return root
    matches = [path for name in names for path in root.rglob(name) if path.is_dir()]
    return min(matches, key=lambda path: (len(path.parts), path), default=None)
