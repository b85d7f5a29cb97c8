"""A user's own data: `images/` and `labels/` (or `masks/`), 2D or 3D; an image without a label is unlabeled.

`patients.csv` beside them says which images are of one patient. Without it every image is a patient.
"""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from crkd_cli.data.raw import formats, hdf5
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.base import (
    RawCase,
    Source,
    blurred,
    case_id,
    images_in,
    pairs,
    threshold,
)
from crkd_cli.data.splits import preview
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError, pluralize

IMAGES, LABELS = ("images", "imagesTr"), ("labels", "masks", "labelsTr")
PATIENTS = "patients.csv"
ENDINGS = ("_segmentation", "_labels", "_label", "_mask", "_seg", "_gt")
MOST_CLASSES = 64


@SOURCES.register
class Folder(Source):
    """What the data set is (2D or 3D, color or gray, which classes) is read from its files."""

    where = "give a folder with images/ and labels/"

    def __init__(
        self, spacing_mm: tuple[float, ...] | None = None, published_crop: bool = False
    ) -> None:
        super().__init__(spacing_mm, published_crop)
        self._numbers: dict[
            int, int
        ] = {}  # raw label value → class number, over the whole data set
        self._blurred = False

    def find(self, root: Path) -> list[RawCase]:
        images, labels = _first_folder(root, IMAGES), _first_folder(root, LABELS)
        if images is None:
            raise CrkdError(
                f"no images/ in {root}: put the images there, and label maps of the same names in labels/"
            )
        raws = pairs(images, labels, ENDINGS, self.notes)
        if not raws:
            raise CrkdError(
                f"{images} holds no image; the formats are {', '.join(formats.SUFFIXES)}"
            )
        if several := [raw.id for raw in raws if raw.id.endswith("_0001")]:
            raise CrkdError(
                f"{images} has several channels per case ({several[0]}): merge them into one file per case"
            )
        raws = [self._with_inner_label(raw) for raw in raws]
        if all(raw.label is None for raw in raws):
            raise CrkdError(_no_label(root, labels, raws[0].id))
        return self._by_patient(raws, root / PATIENTS)

    def _by_patient(self, raws: list[RawCase], file: Path) -> list[RawCase]:
        """`raws` in the groups that the table `file` (columns image and patient) names, if there is one."""
        if not file.exists():
            return raws
        patients = _patients(file)
        if lost := [raw.id for raw in raws if raw.id not in patients]:
            raise CrkdError(
                f"{file} lacks {pluralize(len(lost), 'image')}: {preview(lost)}; add a line with the patient for each"
            )
        if lonely := sorted(set(patients) - {raw.id for raw in raws}):
            self.notes.append(
                f"lines of {file.name} without an image, left out: {len(lonely)} ({preview(lonely)})"
            )
        return [replace(raw, group=patients[raw.id]) for raw in raws]

    def spec(self, name: str, raws: list[RawCase]) -> DatasetSpec:
        layouts: Counter[tuple[int, bool]] = Counter()
        for raw in raws:
            try:
                channels, dims, _ = formats.probe(raw.image)
            except CrkdError:
                continue  # preparation reads it again, and says what is wrong with it
            layouts[dims, dims == 2 and channels > 1] += 1
        dims, color = layouts.most_common(1)[0][0] if layouts else (2, False)
        count = self._read_classes(raws)
        return DatasetSpec(
            name=name,
            source="folder",
            classes=("background", *(f"class {number}" for number in range(1, count))),
            channels=3 if color else 1,
            modality="mr" if dims == 3 else "rgb" if color else "gray",
            dims=2 if dims == 2 else 3,
            intensity="zscore" if dims == 3 else "uint8" if color else "minmax",
        )

    def mapping(self, path: Path, counts: dict[int, int], spec: DatasetSpec) -> dict[int, int]:
        if self._blurred:
            return threshold(counts)
        return {raw: self._numbers[raw] for raw in counts if raw in self._numbers}

    def _note_stray(self, counts: Counter[int], holders: dict[int, list[Path]]) -> None:
        """A class in one label of several may be a slip of the hand."""
        labels = len({path for paths in holders.values() for path in paths})
        for value, paths in sorted(holders.items()):
            if (number := self._numbers.get(value)) and len(paths) == 1 and labels > 2:
                share = f"1 of {labels} labels ({paths[0].name}; pixels or voxels: {counts[value]})"
                self.notes.append(
                    f"class {number} ({value} in the files) is in {share}: a stray value?"
                )

    def _with_inner_label(self, raw: RawCase) -> RawCase:
        """h5 files may hold their own label."""
        if raw.label is not None or formats.suffix(raw.image) not in hdf5.SUFFIXES:
            return raw
        try:
            inside = formats.probe(raw.image)[2]
        except CrkdError:
            return raw
        return replace(raw, label=raw.image) if inside else raw

    def _read_classes(self, raws: list[RawCase]) -> int:
        """Collects the label values of all files, numbers them, and returns how many classes there are."""
        counts: Counter[int] = Counter({0: 0})
        holders: dict[int, list[Path]] = {}
        refused = []
        jpeg = False
        for path in (raw.label for raw in raws if raw.label is not None):
            try:
                values, pixels = np.unique(formats.read_label(path).array, return_counts=True)
            except CrkdError as error:
                refused.append(error)  # as above
                continue
            jpeg |= formats.suffix(path) in (".jpg", ".jpeg")
            counts.update(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
            for value in values.tolist():
                holders.setdefault(value, []).append(path)
        values_found = sorted(value for value in counts if 0 <= value < 2**16)
        if len(values_found) == 1 and refused:
            raise CrkdError(
                f"no label can be used: {refused[0]} (or are images and labels swapped?)"
            )
        if len(values_found) == 1:
            raise CrkdError(
                "no label holds more than background: every value is 0; give label maps with 1, 2, … for classes"
            )
        # {0, 1, 2, 255} are classes; only JPEG, or very many values, speak of a blurred 0/255 mask.
        self._blurred = (jpeg or len(values_found) > 16) and blurred(counts)
        if self._blurred:
            return 2
        if len(values_found) > MOST_CLASSES:
            raise CrkdError(
                f"the label files hold {len(values_found)} different values ({', '.join(map(str, values_found[:6]))} "
                "…), too many to be classes; save them as PNG or NIfTI with one number per class "
                "(or are images and labels swapped?)"
            )
        self._numbers = {raw: number for number, raw in enumerate(values_found)}
        self._note_stray(counts, holders)
        return len(values_found)


def _first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first that holds images, else the first that is there."""
    found = [root / name for name in names if (root / name).is_dir()]
    return next(filter(images_in, found), next(iter(found), None))


def _no_label(root: Path, labels: Path | None, image: str) -> str:
    """Why no image has a label, and what to do."""
    if labels is None:
        return f"{root} has no labels/ (or masks/, labelsTr/): put label maps of the images' names there"
    if maps := images_in(labels):
        named = f"({formats.stem(maps[0])} …; expected {image})"
        return f"{labels} holds {pluralize(len(maps), 'label map')}, none named like an image {named}: rename them"
    return f"{labels} holds no label map: put label maps of the images' names there"


def _patients(file: Path) -> dict[str, str]:
    """Image id → patient of the table `file`. An image may be named with or without its suffix."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise CrkdError(f"{file} cannot be read ({error}); save it as CSV in UTF-8") from None
    patients: dict[str, str] = {}
    for number, row in rows:
        image, patient = ((row.get(column) or "").strip() for column in ("image", "patient"))
        if not image or not patient:
            wanted = "an image and its patient, under a first line that is: image,patient"
            raise CrkdError(
                f"{file}, line {number}, names no {'patient' if image else 'image'}; expected {wanted}"
            )
        other = patients.setdefault(case_id(Path(image)), patient)
        if other != patient:
            raise CrkdError(
                f"{file} gives the image {image} to two patients, {other} and {patient}; keep one line"
            )
    return patients
