"""Convert raw files to a prepared store. The store appears when it is complete, or not at all."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from crkd_cli.data.cases import RawCase
from crkd_cli.data.labels import ClassAssignment, check_values
from crkd_cli.data.prepare_case import CaseResult, case_info, read_case, store_class_numbers
from crkd_cli.data.sources.base import Source
from crkd_cli.data.splits import official_splits, preview
from crkd_cli.data.store import RECIPE, DatasetSpec, Index
from crkd_cli.errors import CrkdError, UsageError, pluralize
from crkd_cli.paths import replace_folder, temporary_folder
from crkd_cli.progress import Progress


@dataclass(frozen=True)
class Finding:
    """What the user should know about the raw files. If there is an error, nothing is written."""

    level: Literal["error", "notice"]
    where: str  # case id, or the name of the dataset
    what: str


@dataclass(frozen=True)
class PreparationReport:
    """All findings about a dataset, and a summary in one line unless there are errors."""

    findings: tuple[Finding, ...]
    summary: str = ""

    @property
    def errors(self) -> list[Finding]:
        """The findings because of which nothing was written."""
        return [finding for finding in self.findings if finding.level == "error"]


def prepare(
    name: str, source: Source, raw: Path, store: Path, progress: Progress, check_only: bool = False
) -> PreparationReport:
    """Check all cases under `raw`, and write the store unless there is an error.

    One case is in memory at a time. The cases are written to a temporary folder, which replaces
    `store` at the end; the splits in a previous store are kept. Raises CrkdError if the layout of
    the raw files or the classes cannot be determined, or if the disk cannot be written.
    """
    cases = source.find(raw)
    spec = source.spec(name, cases)
    _check_spacing(source, spec)
    _check_official_groups(name, cases, raw)
    errors = _duplicate_ids(cases, raw)
    with nullcontext() if check_only else temporary_folder(store) as folder:
        preparation = _Preparation(source, spec, folder, failed=bool(errors))
        preparation.read(cases, progress)
        errors += preparation.errors(raw)
        if errors:
            return PreparationReport(tuple(errors))
        notices = [Finding("notice", name, text) for text in preparation.notices()]
        if folder is not None:
            _publish(folder, store, preparation.index(raw, notices))
        return PreparationReport(tuple(notices), preparation.summary())


class _Preparation:
    """The cases of a dataset while they are prepared.

    A source with fixed classes has the label of a case numbered immediately. Otherwise, the labels
    are numbered after all of them have been read, because the classes follow from their values.
    """

    def __init__(
        self, source: Source, spec: DatasetSpec, folder: Path | None, *, failed: bool
    ) -> None:
        self._source, self._spec, self._folder = source, spec, folder
        self._failed = failed  # nothing more is written
        self._results: list[CaseResult] = []
        self._classes = ClassAssignment(spec.classes, {})

    def read(self, cases: Sequence[RawCase], progress: Progress) -> None:
        """Read, check and store all cases."""
        title = "checking" if self._folder is None else "preparing"
        with progress(title, len(cases), "cases") as advance:
            for case in cases:
                folder = None if self._failed else self._folder
                result = read_case(self._source, case, self._spec, folder)
                self._results.append(result)
                self._failed |= result.error is not None
                if self._spec.classes:
                    self._assign_classes([result])
                    self._store_class_numbers(result)
                advance(1, note=case.id)
        if not self._spec.classes:
            self._assign_classes(self._results)
            self._store_all_class_numbers(progress)

    def errors(self, root: Path) -> list[Finding]:
        """Return the first error of every case, with paths relative to `root`."""
        return [
            Finding("error", result.raw.id, str(result.error).replace(f"{root}/", ""))
            for result in self._results
            if result.error is not None
        ]

    def notices(self) -> list[str]:
        """Return what was chosen, mapped, ignored or not found, in sentences."""
        notices = [
            *_note_unlabeled(self._results),
            *_note_missing_groups(self._spec.name, self._results),
            *_note_unknown_spacing(self._results),
            *self._source.notes,
            *self._classes.notes,
        ]
        if self._source.spacing_mm and any(result.states_spacing for result in self._results):
            notices.append(
                "files that state their spacing keep it: --spacing applies to the others only"
            )
        return notices

    def index(self, root: Path, notices: Iterable[Finding]) -> Index:
        """Return the index of the store; `root` contains the raw files."""
        return Index(
            recipe=RECIPE,
            spec=msgspec.structs.replace(self._spec, classes=self._classes.classes),
            cases=tuple(case_info(result, root) for result in self._results),
            notes=tuple(notice.what for notice in notices),
        )

    def summary(self) -> str:
        """Return the number of cases, their sizes and the classes in one line."""
        count = len(self._results)
        labeled = sum(result.labeled for result in self._results)
        patients = len({result.raw.group for result in self._results})
        of_patients = "" if patients == count else f" of {patients} patients"
        shapes = [result.image.shape for result in self._results if result.image is not None]
        axes = list(zip(*shapes, strict=True))
        smallest = " × ".join(str(min(sides)) for sides in axes)
        largest = " × ".join(str(max(sides)) for sides in axes)
        size = smallest if smallest == largest else f"{smallest} to {largest}"
        names = [info.name for info in self._classes.classes]
        return (
            f"{pluralize(count, 'case')}{of_patients}, {labeled} labeled; size {size}; "
            f"classes: {', '.join(names)}"
        )

    def _assign_classes(self, results: Sequence[CaseResult]) -> None:
        labels = [result.values for result in results if result.values is not None]
        unreadable = [result.label_error for result in results if result.label_error is not None]
        self._classes = self._source.assign_classes(self._spec, labels, unreadable)
        for result in results:
            if result.values is None:
                continue
            result.numbers = self._classes.numbers[result.values.path]
            try:
                check_values(result.values, self._classes)
            except CrkdError as error:
                result.label_error = error
                self._failed = True

    def _store_all_class_numbers(self, progress: Progress) -> None:
        if self._folder is None or self._failed:
            return
        with progress("storing labels", len(self._results), "cases") as advance:
            for result in self._results:
                self._store_class_numbers(result)
                advance(1, note=result.raw.id)

    def _store_class_numbers(self, result: CaseResult) -> None:
        if self._folder is not None and not self._failed and result.labeled:
            class_count = len(self._classes.classes)
            store_class_numbers(result, self._spec, class_count, self._folder)


def _check_spacing(source: Source, spec: DatasetSpec) -> None:
    count = len(source.spacing_mm or ())
    if count not in (0, 1, spec.dims):
        raise UsageError(
            f"--spacing has {count} numbers, but {spec.name} is {spec.dims}D: give 1 or {spec.dims}"
        )


def _check_official_groups(name: str, cases: Sequence[RawCase], root: Path) -> None:
    official = official_splits(name)
    if official is None:
        return
    groups = {case.group for case in cases}
    if groups.isdisjoint(official.groups):
        raise CrkdError(
            f"{root} contains no case of {name}'s official split; "
            "choose another name for your own data"
        )


def _duplicate_ids(cases: Sequence[RawCase], root: Path) -> list[Finding]:
    images: dict[str, list[str]] = {}
    for case in cases:
        images.setdefault(case.id, []).append(case.image.relative_to(root).as_posix())
    return [
        Finding("error", name, f"{len(files)} images have this id: {', '.join(files)}; keep one")
        for name, files in images.items()
        if len(files) > 1
    ]


def _note_unlabeled(results: Sequence[CaseResult]) -> Iterable[str]:
    unlabeled = sum(not result.labeled for result in results)
    if unlabeled:
        yield f"{unlabeled} of {len(results)} cases have no label: they are unlabeled"


def _note_missing_groups(name: str, results: Sequence[CaseResult]) -> Iterable[str]:
    official = official_splits(name)
    if official is None:
        return
    present = {result.raw.group for result in results}
    missing = [group for group in official.groups if group not in present]
    if missing:
        yield (
            f"{len(missing)} of the official split's {len(official.groups)} ids are missing: "
            f"{preview(missing)}"
        )


def _note_unknown_spacing(results: Sequence[CaseResult]) -> Iterable[str]:
    images = [result.image for result in results if result.image is not None]
    dims = Counter(len(image.shape) for image in images)
    if 3 in dims and all(image.spacing_mm is None for image in images):
        yield (
            "the files do not state their spacing: distances will be in voxels; "
            "set it with --spacing"
        )


def _publish(folder: Path, store: Path, index: Index) -> None:
    """Write the index, keep the splits of the previous store, and replace this store."""
    text = json.dumps(msgspec.to_builtins(index), indent=1, ensure_ascii=False)
    (folder / "index.json").write_text(text + "\n", encoding="utf-8")
    if (store / "splits").is_dir():
        shutil.copytree(store / "splits", folder / "splits")
    replace_folder(folder, store)
