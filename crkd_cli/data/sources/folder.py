"""A user's own dataset: `images/` and `labels/` (or `masks/`), 2D or 3D.

Images without a label are unlabeled. A description in `dataset.yaml` (or nnU-Net's `dataset.json`)
states what cannot be inferred. Without `patients.csv`, every image is a patient.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from crkd_cli.data import explain
from crkd_cli.data.cases import LabelFile, RawCase
from crkd_cli.data.channels import default_names
from crkd_cli.data.classes import decide_classes
from crkd_cli.data.description import FILES, ChannelModality, read_description
from crkd_cli.data.discovery import Discovery
from crkd_cli.data.inventory import RawFile, list_files
from crkd_cli.data.labels import ClassAssignment, LabelValues
from crkd_cli.data.layout import base_folder
from crkd_cli.data.patients import TABLE, group_by_pattern, group_by_table, hide_patients
from crkd_cli.data.raw import formats, hdf5
from crkd_cli.data.raw.colors import join_color_errors
from crkd_cli.data.series import find_series
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
        listed = list_files(root)
        found = find_series(listed, self.files)
        files = found.files
        base = base_folder(files)
        self._read_description(root, base, files)
        if self.description.series_by_channel is not None:
            found = find_series(listed, self.files, self.description.series_by_channel)
            files = found.files
        self.remarks += found.lines
        if base and not self.description.images and not self.files.reveals(base):
            self.notes.append(f"images and labels are in {printable(base)}")
        if self.ignore is not None:
            self.description = self.description.ignoring(self.ignore)
        discovery = Discovery(root, base, files, self.description, self.files, self.notes)
        channels = self.description.channel_names
        cases = [_with_inner_label(case, channels) for case in discovery.cases()]
        if not self.files.refused and all(not case.labels for case in cases):
            example = cases[0].id
            raise CrkdError(explain.why_unlabeled(root, base, files, self.description, example))
        self.description = discovery.with_patterns(cases)
        return self._group_by_patient(cases, root, base)

    def spec(self, name: str, cases: list[RawCase]) -> DatasetSpec:
        count, dims, is_color = _most_common_layout(cases, self.description.channel_names)
        channels = self._describe_channels(count, dims, is_color)
        return DatasetSpec(
            name=name,
            source="folder",
            classes=(),
            channels=tuple(
                ChannelInfo(name=name, modality=modality, intensity=intensity_of(modality, dims))
                for name, modality in channels.items()
            ),
            dims=2 if dims == 2 else 3,
            ignore=self.description.ignored_value,
            description=self.description,
        )

    def assign_classes(
        self, spec: DatasetSpec, labels: Sequence[LabelValues], unreadable: Sequence[CrkdError]
    ) -> ClassAssignment:
        """Decide from the description and the values of all label files which classes there are."""
        stated = spec.description.class_values
        return decide_classes(labels, stated, spec.ignore, join_color_errors(unreadable))

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

    def _describe_channels(
        self, count: int, dims: int, is_color: bool
    ) -> dict[str, ChannelModality]:
        """Return the modality of every channel: as described, else what the layout suggests."""
        names = self.description.channel_names or default_names(1 if is_color else count)
        described = {channel.name: channel.modality for channel in self.description.channels or ()}
        inferred: ChannelModality = "MR"
        if dims == 2:
            inferred = "RGB" if is_color else "gray"
        modalities = {name: described.get(name) or inferred for name in names}
        if "RGB" in modalities.values() and not is_color:
            raise CrkdError(
                "the description says RGB, but most images are not 2D images with colors; give "
                "another modality (gray, MR or CT), or drop the line"
            )
        return modalities

    def _group_by_patient(self, cases: list[RawCase], root: Path, base: str) -> list[RawCase]:
        """Set the groups of `cases` to their patients, if these are known."""
        given = self.description.patients
        if given is not None and not given.lower().endswith(".csv"):
            return hide_patients(group_by_pattern(cases, root, given))
        table = root / (given or f"{base}{TABLE}")
        if not table.exists():
            if given is not None:
                raise CrkdError(f"{table} does not exist; correct patients in the description")
            if len(cases) > 1 and len({case.group for case in cases}) == 1:
                self.notes.append(
                    "all DICOM series have the same patient ID, so no split divides them; list "
                    f"the patients in {TABLE} if that is wrong"
                )
            return cases
        self.files.used[table] = "table of patients"
        name = table.relative_to(root).as_posix()
        self.description = msgspec.structs.replace(self.description, patients=name)
        return hide_patients(group_by_table(cases, root, table, self.notes))


def _with_inner_label(case: RawCase, channels: Sequence[str]) -> RawCase:
    """Use the label inside an h5 image, if there is one and no other.

    An image that cannot be read counts as labeled: that is reported when it is read, and not that
    it has no label.
    """
    if case.labels or formats.suffix(case.image) not in hdf5.SUFFIXES:
        return case
    has_label = True
    with suppress(CrkdError):
        has_label = formats.probe(case.image, channels).has_label
    return replace(case, labels=(LabelFile(case.image),)) if has_label else case


def _most_common_layout(cases: list[RawCase], channels: Sequence[str]) -> tuple[int, int, bool]:
    """Return (channels, spatial axes, is color) of most images.

    `channels` are the names of the channels that are described. Colors are channels if there are
    several.
    """
    layouts: Counter[tuple[int, int, bool]] = Counter()
    for case in cases:
        try:
            layout = formats.probe(case.image, channels, case.images[0].slices)
        except CrkdError:  # reported when the image is read
            continue
        count = len(case.images) if len(case.images) > 1 else layout.channels
        is_color = layout.is_color and layout.dims == 2 and max(len(channels), len(case.images)) < 2
        layouts[count, layout.dims, is_color] += 1
    return layouts.most_common(1)[0][0] if layouts else (1, 2, False)
