"""A user's own dataset: `images/` and `labels/` (or `masks/`), 2D or 3D.

Images without a label are unlabeled. A description in `dataset.yaml` (or nnU-Net's `dataset.json`)
states what cannot be inferred. Without `patients.csv`, every image is a patient.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from crkd_cli.data import explain
from crkd_cli.data.cases import LabelFile, RawCase
from crkd_cli.data.classes import decide_classes
from crkd_cli.data.description import FILES, Channel, ChannelModality, read_description
from crkd_cli.data.discovery import Discovery
from crkd_cli.data.inventory import RawFile, list_files
from crkd_cli.data.labels import ClassAssignment, LabelValues
from crkd_cli.data.layout import base_folder
from crkd_cli.data.patients import TABLE, group_by_pattern, group_by_table
from crkd_cli.data.raw import formats, hdf5
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.base import Source
from crkd_cli.data.store import ChannelInfo, DatasetSpec, intensity_of
from crkd_cli.errors import CrkdError
from crkd_cli.text import printable


@SOURCES.register
class Folder(Source):
    """Infers from the files whether the dataset is 2D or 3D, color or gray, and its classes."""

    where = "give a folder with images/ and labels/"
    reads_description = True

    def find(self, root: Path) -> list[RawCase]:
        files = list_files(root)
        base = base_folder(files)
        self._read_description(root, base, files)
        if base and not self.description.images:
            self.notes.append(f"images and labels are in {printable(base)}")
        if self.ignore is not None:
            self.description = self.description.ignoring(self.ignore)
        discovery = Discovery(root, base, files, self.description, self.files, self.notes)
        cases = [_with_inner_label(case) for case in discovery.cases()]
        if not self.files.refused and all(not case.labels for case in cases):
            example = cases[0].id
            raise CrkdError(explain.why_unlabeled(root, base, files, self.description, example))
        self.description = discovery.with_patterns(cases)
        return self._group_by_patient(cases, root, base)

    def spec(self, name: str, cases: list[RawCase]) -> DatasetSpec:
        dims, is_color = _most_common_layout(cases)
        modality = self._modality(dims, is_color)
        return DatasetSpec(
            name=name,
            source="folder",
            classes=(),
            channels=(
                ChannelInfo(
                    name=(self.description.channels or (Channel(),))[0].name,
                    modality=modality,
                    intensity=intensity_of(modality, dims),
                ),
            ),
            dims=2 if dims == 2 else 3,
            ignore=self.description.ignore,
            description=self.description,
        )

    def assign_classes(
        self, spec: DatasetSpec, labels: Sequence[LabelValues], unreadable: Sequence[CrkdError]
    ) -> ClassAssignment:
        """Decide from the description and the values of all label files which classes there are."""
        return decide_classes(labels, spec.description.classes, spec.ignore, unreadable)

    def _read_description(self, root: Path, base: str, files: Sequence[RawFile]) -> None:
        """Read the description, if there is one: YAML before JSON, in the root before `base`."""
        names = [f"{folder}{name}" for name in FILES for folder in dict.fromkeys(("", base))]
        existing = {file.name: file.path for file in files if file.name in names}
        described = [name for name in names if name in existing]
        if not described:
            return
        first, *others = described
        for name in others:
            self.files.left_out[existing[name]] = f"{first} is read instead"
        self.files.used[existing[first]] = "description"
        self.description = read_description(existing[first]).below(first.rpartition("/")[0])
        channels = self.description.channels or ()
        if len(channels) > 1:
            channel_names = ", ".join(printable(channel.name) for channel in channels)
            numbered = (file.name for file in files if "_0000." in file.name)
            example = re.sub(r"[^/]+_0000", "{name}_0000", next(numbered, "{name}_t1.nii.gz"))
            raise CrkdError(
                f"{root / first} describes {len(channels)} channels ({channel_names}), but only "
                "one is supported; describe one in dataset.yaml, and choose its files with a line "
                f'such as images: "{printable(example)}"'
            )

    def _modality(self, dims: int, is_color: bool) -> ChannelModality:
        """Return the modality of the images: as described, else what their layout suggests."""
        (channel,) = self.description.channels or (Channel(),)
        inferred: ChannelModality = "MR"
        if dims == 2:
            inferred = "RGB" if is_color else "gray"
        modality = channel.modality or inferred
        if modality == "RGB" and not is_color:
            raise CrkdError(
                "the description says RGB, but most images have no colors; give another modality "
                "(gray, MR or CT), or drop the line"
            )
        return modality

    def _group_by_patient(self, cases: list[RawCase], root: Path, base: str) -> list[RawCase]:
        """Set the groups of `cases` to their patients, if these are known."""
        given = self.description.patients
        if given is not None and not given.lower().endswith(".csv"):
            return group_by_pattern(cases, root, given)
        table = root / (given or f"{base}{TABLE}")
        if not table.exists():
            if given is not None:
                raise CrkdError(f"{table} does not exist; correct patients in the description")
            return cases
        self.files.used[table] = "table of patients"
        name = table.relative_to(root).as_posix()
        self.description = msgspec.structs.replace(self.description, patients=name)
        return group_by_table(cases, root, table, self.notes)


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
