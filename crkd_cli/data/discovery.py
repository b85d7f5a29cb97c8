"""Find the cases of a user's dataset, by folders and names or by the patterns of a description.

Patterns that find the same cases are inferred, so that a user can correct them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from crkd_cli.data import explain, patterns
from crkd_cli.data.cases import ImageFile, RawCase
from crkd_cli.data.channels import Image, images_by_pattern, name_images
from crkd_cli.data.description import Description
from crkd_cli.data.inventory import FileRecord, RawFile
from crkd_cli.data.layout import candidates, find_labels, find_layout
from crkd_cli.data.naming import Candidate, label_keys, read_by_pattern
from crkd_cli.data.pairing import label_by_name, label_by_pattern
from crkd_cli.errors import CrkdError
from crkd_cli.text import printable


@dataclass
class Discovery:
    """The cases in `files`, those of the folder `root`.

    Args:
        root: Folder of the raw files.
        base: Folder below the root with the images, unless the description has patterns.
        files: All files below the root.
        description: Its patterns are relative to `root`.
        record: Receives why files are not used.
        notes: Receives what the user should know.
    """

    root: Path
    base: str
    files: Sequence[RawFile]
    description: Description
    record: FileRecord = field(default_factory=FileRecord)
    notes: list[str] = field(default_factory=list)

    def cases(self) -> list[RawCase]:
        """Return the cases, sorted by id. Raises CrkdError if there is no image."""
        given = self.description
        images, labels = self._given_images() if given.images else self._images()
        if not given.labels:
            cases = label_by_name(images, labels, self.record, self.notes)
        else:
            cases = label_by_pattern(images, self.files, given.label_patterns, self.record)
        if given.images or given.labels:
            self._leave_out_unmatched(cases)
        return cases

    def with_patterns(self, cases: Sequence[RawCase]) -> Description:
        """Return the description with patterns, if there are some that find the same `cases`."""
        proposed = self._infer_patterns(cases)
        again = Discovery(self.root, self.base, self.files, proposed)
        try:
            same = _comparable(again.cases()) == _comparable(cases)
        except CrkdError:
            same = False
        return proposed if same else self.description

    def _images(self) -> tuple[list[Image], list[Candidate]]:
        """Return the images where they are expected, and the files that may be labels."""
        layout = find_layout(self.files, self.base, self.record)
        if layout is None or not layout.images:
            raise CrkdError(explain.why_no_image(self.root, self.base, self.files, layout))
        candidate_images, labels = layout.images, layout.labels
        labeled = label_keys(labels)
        if self.description.labels:
            candidate_images, labels = self._without_labels(candidate_images), []
            labeled = {("", name) for file in self.files for name in self._label_names(file)}
        names = self.description.channel_names
        images, masks = name_images(candidate_images, labeled, names)
        if not images:
            raise CrkdError(
                f"{self.root / layout.images_folder} contains no image, only masks by their names "
                f"({printable(layout.images[0].file.path.name)} …); put the images there, or say "
                "where they are in dataset.yaml"
            )
        return images, [*labels, *masks]

    def _given_images(self) -> tuple[list[Image], list[Candidate]]:
        """Return the images that match the pattern, and the files that may be labels."""
        image_patterns = self.description.image_patterns
        label_patterns = self.description.label_patterns
        images = images_by_pattern(self.files, image_patterns, label_patterns, self.record)
        matched = {channel for image in images for channel in image.channels}
        is_joined = len(image_patterns) > 1
        for channel, pattern in image_patterns.items():
            if not images or (is_joined and channel not in matched):
                key = "images" if channel is None else f"images.{channel}"
                raise CrkdError(
                    f"no image in {self.root} matches the pattern {key}: {pattern!r}; correct it"
                )
        if label_patterns:
            return images, []
        labels = find_labels(self.files, self.base, self.record)
        if labels is None:  # they are beside the images
            used = {file for image in images for file in image.files}
            others = [file for file in self.files if file not in used]
            folder = patterns.folder(next(iter(image_patterns.values())))
            labels = candidates(others, folder, self.record)
        return images, labels

    def _without_labels(self, images: Sequence[Candidate]) -> list[Candidate]:
        """Return `images` without those that are labels of others by the patterns of labels."""
        stems = {image.stem for image in images}
        return [
            image for image in images if not (self._label_names(image.file) - {image.stem}) & stems
        ]

    def _label_names(self, file: RawFile) -> set[str]:
        """Return the names that the image of a label file may have, by the patterns of labels."""
        return {name for name, _ in read_by_pattern(file, self.description.label_patterns)}

    def _leave_out_unmatched(self, cases: Iterable[RawCase]) -> None:
        used = set()
        for case in cases:
            used |= {*case.image_files, *(label.path for label in case.labels)}
        for file in self.files:
            known = file.path in used or file.path in self.record
            if not known and not file.skipped and file.is_image:
                self.record.left_out[file.path] = "matches no pattern in dataset.yaml"

    def _infer_patterns(self, cases: Sequence[RawCase]) -> Description:
        names = {file.path: file.name for file in self.files}
        dicom = {file.path for file in self.files if file.dicom is not None}
        by_channel: _Entries = {}
        by_class: _Entries = {}
        for case in cases:
            # A DICOM case is named after one folder, whatever its channels.
            images = [ImageFile(case.image)] if case.image in dicom else case.images
            for image in images:
                by_channel.setdefault(image.channel, []).append((names[image.path], case.id))
            for label in case.labels:
                if label.path != case.image:
                    entry = (names[label.path], case.id)
                    by_class.setdefault(label.class_name, []).append(entry)
        templates = {name: patterns.common_template(by_channel[name]) for name in by_channel}
        classes = sorted(by_class, key=lambda name: (name is not None, name))
        labels = {name: patterns.common_template(by_class[name]) for name in classes}
        given = self.description
        is_clear = all(templates.values()) and (None not in templates or len(templates) == 1)
        if not given.images and templates and is_clear:
            given = msgspec.structs.replace(given, images=templates.get(None) or templates)
        if not given.labels and labels and all(labels.values()):
            given = msgspec.structs.replace(given, labels=labels.get(None) or labels)
        return given


_Entries = dict[str | None, list[tuple[str, str]]]  # file names and the names of their cases


def _comparable(
    cases: Iterable[RawCase],
) -> list[tuple[str, tuple[ImageFile, ...], frozenset[object]]]:
    return [(case.id, case.images, frozenset(case.labels)) for case in cases]
