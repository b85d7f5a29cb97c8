"""A user's own dataset: `images/` and `labels/` (or `masks/`), 2D or 3D.

Images without a label are unlabeled. `patients.csv` says which images belong to the same patient;
without it, every image is a patient.
"""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from crkd_cli.data.cases import LabelFile, RawCase, case_id, images_in, pair_with_labels
from crkd_cli.data.labels import ClassAssignment, LabelValues, Numbers, is_blurred, threshold
from crkd_cli.data.raw import formats, hdf5
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.base import Source
from crkd_cli.data.splits import preview
from crkd_cli.data.store import ClassInfo, DatasetSpec, Intensity, Modality
from crkd_cli.errors import CrkdError, pluralize

IMAGES = ("images", "imagesTr")
LABELS = ("labels", "masks", "labelsTr")
PATIENTS = "patients.csv"
ENDINGS = ("_segmentation", "_labels", "_label", "_mask", "_seg", "_gt")
MAX_CLASSES = 64
MAX_LABEL_VALUE = 2**16 - 1
# With so few values, {0, 1, 2, 255} are classes and not a blurred mask.
MAX_VALUES_NOT_BLURRED = 16


@SOURCES.register
class Folder(Source):
    """Decides from the files what the dataset is: 2D or 3D, color or gray, which classes."""

    where = "give a folder with images/ and labels/"

    def find(self, root: Path) -> list[RawCase]:
        images, labels = _first_folder(root, IMAGES), _first_folder(root, LABELS)
        if images is None:
            raise CrkdError(
                f"no images/ in {root}; put the images there, and label maps with the same names "
                "in labels/"
            )
        cases = pair_with_labels(images, labels, ENDINGS, self.notes)
        if not cases:
            supported = ", ".join(formats.SUFFIXES)
            raise CrkdError(f"{images} contains no image; supported formats: {supported}")
        second_channels = [case.id for case in cases if case.id.endswith("_0001")]
        if second_channels:
            raise CrkdError(
                f"{images} has several files per case, one per channel ({second_channels[0]}); "
                "merge them into one file per case"
            )
        cases = [_with_inner_label(case) for case in cases]
        if all(not case.labels for case in cases):
            raise CrkdError(_why_unlabeled(root, labels, cases[0].id))
        return self._group_by_patient(cases, root / PATIENTS)

    def spec(self, name: str, cases: list[RawCase]) -> DatasetSpec:
        dims, is_color = _most_common_layout(cases)
        modality: Modality = "mr"
        intensity: Intensity = "zscore"
        if dims == 2 and is_color:
            modality, intensity = "rgb", "uint8"
        elif dims == 2:
            modality, intensity = "gray", "minmax"
        return DatasetSpec(
            name=name,
            source="folder",
            classes=(),
            channels=3 if is_color else 1,
            modality=modality,
            dims=2 if dims == 2 else 3,
            intensity=intensity,
        )

    def assign_classes(
        self, spec: DatasetSpec, labels: Sequence[LabelValues], unreadable: Sequence[CrkdError]
    ) -> ClassAssignment:
        """Make every value in the dataset a class, in ascending order; 0 is the background."""
        counts = Counter({0: 0})
        for label in labels:
            counts.update(label.counts)
        values = sorted(value for value in counts if 0 <= value <= MAX_LABEL_VALUE)
        if len(values) == 1:
            raise CrkdError(_why_only_background(unreadable))

        is_jpeg = any(formats.suffix(label.path) in (".jpg", ".jpeg") for label in labels)
        if (is_jpeg or len(values) > MAX_VALUES_NOT_BLURRED) and is_blurred(counts):
            numbers = threshold(counts)
            notes = []
        elif len(values) > MAX_CLASSES:
            raise CrkdError(_too_many_values(values))
        else:
            numbers = {value: number for number, value in enumerate(values)}
            notes = _note_rare_values(numbers, counts, labels)

        classes = [ClassInfo(name="background", values=(0,))]
        for number in range(1, max(numbers.values()) + 1):
            members = [value for value, member in numbers.items() if member == number]
            classes.append(ClassInfo(name=f"class {number}", values=(members[-1],)))
        by_file = {
            label.path: {value: numbers[value] for value in label.counts if value in numbers}
            for label in labels
        }
        return ClassAssignment(tuple(classes), by_file, tuple(notes))

    def _group_by_patient(self, cases: list[RawCase], table: Path) -> list[RawCase]:
        """Set the groups of `cases` to the patients in `table`, if this file exists."""
        if not table.exists():
            return cases
        patients = _read_patients(table)
        missing = [case.id for case in cases if case.id not in patients]
        if missing:
            raise CrkdError(
                f"{table} lacks {pluralize(len(missing), 'image')}: {preview(missing)}; "
                "add a line with the patient for each"
            )
        unused = sorted(set(patients) - {case.id for case in cases})
        if unused:
            lines = f"{len(unused)} ({preview(unused)})"
            self.notes.append(f"lines of {table.name} without an image, ignored: {lines}")
        return [replace(case, group=patients[case.id]) for case in cases]


def _first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first of the folders that contains images, else the first that exists."""
    folders = [root / name for name in names if (root / name).is_dir()]
    with_images = filter(images_in, folders)
    return next(with_images, folders[0] if folders else None)


def _with_inner_label(case: RawCase) -> RawCase:
    """Use the label inside an h5 image, if there is one and no other."""
    if case.labels or formats.suffix(case.image) not in hdf5.SUFFIXES:
        return case
    try:
        has_label = formats.probe(case.image).has_label
    except CrkdError:  # reported when the image is read
        return case
    return replace(case, labels=(LabelFile(case.image),)) if has_label else case


def _most_common_layout(cases: list[RawCase]) -> tuple[int, bool]:
    """Return (spatial axes, is color) of most images."""
    layouts: Counter[tuple[int, bool]] = Counter()
    for case in cases:
        try:
            layout = formats.probe(case.image)
        except CrkdError:  # reported when the image is read
            continue
        layouts[layout.dims, layout.dims == 2 and layout.channels > 1] += 1
    return layouts.most_common(1)[0][0] if layouts else (2, False)


def _note_rare_values(
    numbers: Numbers, counts: Mapping[int, int], labels: Sequence[LabelValues]
) -> list[str]:
    """Note the classes that occur in one label of several: they may be mistakes."""
    notes = []
    for value, number in numbers.items():
        files = [label.path for label in labels if value in label.counts]
        if number > 0 and len(files) == 1 and len(labels) > 2:
            notes.append(
                f"class {number} ({value} in the files) is in 1 of {len(labels)} labels "
                f"({files[0].name}; pixels or voxels: {counts[value]}): a stray value?"
            )
    return notes


def _why_unlabeled(root: Path, labels: Path | None, image: str) -> str:
    """Explain why no image has a label, and what to do."""
    if labels is None:
        return (
            f"{root} has no labels/ (or masks/, labelsTr/); put label maps with the images' names "
            "there"
        )
    label_maps = images_in(labels)
    if not label_maps:
        return f"{labels} contains no label map; put label maps with the images' names there"
    return (
        f"{labels} contains {pluralize(len(label_maps), 'label map')}, but none has the name of an "
        f"image ({formats.stem(label_maps[0])} …; expected {image}); rename them"
    )


def _why_only_background(unreadable: Sequence[CrkdError]) -> str:
    if unreadable:
        return f"no label can be used: {unreadable[0]} (or are images and labels swapped?)"
    return (
        "no label contains more than background: every value is 0; "
        "give label maps with 1, 2, … for classes"
    )


def _too_many_values(values: list[int]) -> str:
    examples = ", ".join(map(str, values[:6]))
    return (
        f"the label files contain {len(values)} different values ({examples} …), too many to be "
        "classes; save them as PNG or NIfTI with one number per class "
        "(or are images and labels swapped?)"
    )


def _read_patients(table: Path) -> dict[str, str]:
    """Return the patient of every image in `table`, where images may have their suffix or not."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise CrkdError(f"{table} cannot be read ({error}); save it as CSV in UTF-8") from None

    patients: dict[str, str] = {}
    for line, row in rows:
        image = (row.get("image") or "").strip()
        patient = (row.get("patient") or "").strip()
        if not image or not patient:
            missing = "patient" if image else "image"
            raise CrkdError(
                f"{table}, line {line}, lacks the {missing}; expected an image and its patient, "
                "and as the first line: image,patient"
            )
        other = patients.setdefault(case_id(Path(image)), patient)
        if other != patient:
            raise CrkdError(
                f"{table} assigns the image {image} to two patients, {other} and {patient}; "
                "keep one line"
            )
    return patients
