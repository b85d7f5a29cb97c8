"""Find the image files of a folder, and pair them with their labels."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from crkd_cli.data.raw import formats
from crkd_cli.errors import CrkdError


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


def images_in(folder: Path) -> list[Path]:
    """Return the image files of `folder`, sorted by name. Hidden files are ignored."""
    return sorted(
        path
        for path in folder.iterdir()
        if formats.suffix(path) and not path.name.startswith(".") and path.is_file()
    )


def case_id(image: Path) -> str:
    """Return the file name of `image` without its suffix and without nnU-Net's channel number."""
    return formats.stem(image).removesuffix("_0000")


def find_folder(root: Path, *names: str) -> Path | None:
    """Return `root` or the folder nearest below it that has one of `names`."""
    if root.name in names:
        return root
    matches = [path for name in names for path in root.rglob(name) if path.is_dir()]
    return min(matches, key=lambda path: (len(path.parts), path), default=None)


def pair_with_labels(
    images: Path, labels: Path | None, endings: tuple[str, ...], notes: list[str]
) -> list[RawCase]:
    """Return a case for every image in the folder `images`, sorted by id.

    The label of a case has the same name, optionally followed by one of `endings`. What is ignored
    is described in `notes`. Raises CrkdError if an image has two labels.
    """
    label_files = _labels_by_case(labels, endings) if labels else {}
    _note_other_files(images, notes)
    cases = []
    for path in images_in(images):
        name = case_id(path)
        cases.append(labeled_case(name, name, path, label_files.get(name)))
    _note_unused_labels(label_files, cases, notes)
    return sorted(cases, key=lambda case: case.id)


def _labels_by_case(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    by_case: dict[str, Path] = {}
    for path in images_in(folder):
        name = formats.stem(path)
        ending = next((ending for ending in endings if name.endswith(ending)), "")
        other = by_case.setdefault(name.removesuffix(ending), path)
        if other != path:
            raise CrkdError(
                f"{folder} has two labels for one image: {other.name} and {path.name}; keep one"
            )
    return by_case


def _note_other_files(images: Path, notes: list[str]) -> None:
    others = [path for path in images.glob("[!.]*") if path.is_file() and not formats.suffix(path)]
    count = sum(path.suffix != ".txt" for path in others)
    if count:
        notes.append(f"files in {images.name} with no supported image format, ignored: {count}")


def _note_unused_labels(
    label_files: Mapping[str, Path], cases: Iterable[RawCase], notes: list[str]
) -> None:
    """Note the labels without an image, and which image they may belong to."""
    unused = sorted(set(label_files) - {case.id for case in cases})
    if not unused:
        return
    unlabeled = {case.id.lower(): case.id for case in cases if not case.labels}
    descriptions = []
    for name in unused[:5]:
        near = get_close_matches(name.lower(), unlabeled, n=1, cutoff=0.8)
        hint = f": did you mean {unlabeled[near[0]]}?" if near else ""
        descriptions.append(f"{name}{hint}")
    notes.append(
        f"label files without an image, ignored: {len(unused)} ({', '.join(descriptions)})"
    )
