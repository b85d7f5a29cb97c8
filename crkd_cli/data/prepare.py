"""Convert raw files to a prepared store. The store is written completely or not at all."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from crkd_cli.data.cases import RawCase
from crkd_cli.data.changes import NewContent, find_new_content
from crkd_cli.data.description import FILES, Description, to_yaml
from crkd_cli.data.fingerprint import measure
from crkd_cli.data.intensities import channel_lines, decide_intensities, note_unlike_ct
from crkd_cli.data.inventory import Inventory, list_files, take_inventory
from crkd_cli.data.labels import ClassAssignment, class_lines
from crkd_cli.data.notices import (
    note_missing_groups,
    note_resampled_channels,
    note_turned_labels,
    note_unknown_spacing,
    note_unlabeled,
)
from crkd_cli.data.plan import Plan
from crkd_cli.data.planning import PlanWithReasons, make_plan
from crkd_cli.data.prepare_case import (
    CaseResult,
    case_info,
    number_label,
    prepare_case,
    store_class_numbers,
)
from crkd_cli.data.report import (
    Finding,
    PreparationReport,
    complete_description,
    describe_spacings,
)
from crkd_cli.data.sources.base import Source
from crkd_cli.data.splits import official_splits, preview
from crkd_cli.data.store import RECIPE, DatasetSpec, Index, ValueStatistics, write_index
from crkd_cli.data.workers import choose_workers, map_cases
from crkd_cli.errors import CrkdError, UsageError, pluralize
from crkd_cli.locks import only_writer
from crkd_cli.paths import replace_folder, temporary_folder
from crkd_cli.progress import Progress
from crkd_cli.text import printable

# Makes the plan of a dataset with this many classes.
MakePlan = Callable[[int], PlanWithReasons]


def prepare(
    name: str,
    source: Source,
    raw: Path,
    store: Path,
    progress: Progress,
    check_only: bool = False,
    memory: float | None = None,
    workers: int | None = 1,
) -> PreparationReport:
    """Check all cases under `raw`, and write the store unless there is an error.

    Each of `workers` processes (None: as many as are fastest) has one case in memory at a time. The
    cases are written to a temporary folder, which replaces `store` at the end; the splits in a
    previous store are kept. If the layout of the raw files or the classes cannot be determined, or
    the disk cannot be written, the report contains the error. Raises UsageError if an option or the
    description of the dataset does not fit.

    `memory` is what training may use, in bytes; the plan of a user's own dataset depends on it.
    """
    run = _Run(name, source, raw, memory)
    try:
        # Only generated raw files are ever replaced.
        with only_writer(raw) if source.generated else nullcontext():
            return run.prepare(store, progress, check_only, workers)
    except UsageError:
        raise
    except CrkdError as error:
        return run.failed(error)


class _Run:
    """A preparation, from the raw files to the report."""

    def __init__(self, name: str, source: Source, raw: Path, memory: float | None) -> None:
        self._name, self._source, self._raw = name, source, raw
        self._memory = memory
        self._cases: list[RawCase] = []
        self._duplicates: dict[str, list[Path]] = {}  # images by id
        self._make_plan: MakePlan | None = None  # of a user's own dataset
        self._preparation: _Preparation | None = None

    def prepare(
        self, store: Path, progress: Progress, check_only: bool, workers: int | None
    ) -> PreparationReport:
        """Find, check and store the cases."""
        self._cases = self._source.find(self._raw)
        if not self._source.reads_description:
            self._note_description()
        if not self._cases and self._source.files.refused:
            return self._report(self._errors())
        spec = _with_spacing(self._source, self._source.spec(self._name, self._cases))
        _check_official_groups(self._name, self._cases, self._raw)
        self._duplicates = _duplicate_ids(self._cases)
        if workers is None:
            workers = choose_workers(self._cases)
        if self._source.reads_description:
            spec = self._measure(spec, progress, workers)
        with nullcontext() if check_only else temporary_folder(store) as folder:
            has_failed = bool(self._duplicates or self._source.files.refused)
            preparation = _Preparation(
                self._source, spec, self._make_plan, None if has_failed else folder
            )
            self._preparation = preparation
            preparation.read(self._cases, progress, workers)
            errors = self._errors()
            if errors:
                return self._report(errors)
            notices = preparation.notices()
            if not check_only:  # else, all files are listed
                notices += self._inventory().notices()
            findings = [Finding("notice", self._name, text) for text in notices]
            new_content = NewContent()
            if folder is not None:
                index = preparation.index(self._raw, findings)
                new_content = find_new_content(store, index.cases)
                _publish(folder, store, index)
            report = self._report(findings, preparation.summary())
            return replace(
                report,
                new_content=new_content,
                spacing=preparation.spacing_line(),
                channels=preparation.channel_lines(),
                classes=preparation.class_lines(),
                plan=preparation.plan,
            )

    def _measure(self, spec: DatasetSpec, progress: Progress, workers: int) -> DatasetSpec:
        """Return `spec` with the plan and the intensities, which follow from the images."""
        fingerprint = measure(self._cases, spec)
        if fingerprint.images:  # otherwise there are errors, which are reported later
            given = spec.description.plan or Plan()
            self._make_plan = partial(make_plan, fingerprint, given, self._memory)
            foreground = spec.description.class_values or {"unknown": 1}
            plan = self._make_plan(1 + len(foreground)).plan
            spec = msgspec.structs.replace(spec, plan=plan, stored_size=plan.resize)
        return decide_intensities(self._source, self._cases, spec, progress, workers)

    def _note_description(self) -> None:
        for name in FILES:
            if (self._raw / name).exists():
                reason = f"the description of {self._name} is fixed"
                self._source.files.left_out[self._raw / name] = reason

    def failed(self, error: CrkdError) -> PreparationReport:
        """Return the report if the dataset as a whole cannot be prepared."""
        if self._duplicates or self._source.files.refused:  # which may be the reason
            return self._report(self._errors())
        return self._report(self._errors(), failure=error)

    def _report(
        self, findings: Sequence[Finding], summary: str = "", failure: CrkdError | None = None
    ) -> PreparationReport:
        description = self._source.description
        if self._preparation is not None:
            description = self._preparation.description()
        remarks = [Finding("notice", self._name, text) for text in self._source.remarks]
        return PreparationReport(
            (*findings, *remarks),
            self._inventory(),
            description,
            tuple(self._cases),
            summary,
            failure=failure,
        )

    def _inventory(self) -> Inventory:
        record = self._source.files
        refused = dict(record.refused)
        for paths in self._duplicates.values():
            refused |= dict.fromkeys(paths, "another image has the same id")
        if self._preparation is not None:
            refused |= self._preparation.refused()
        return take_inventory(
            list_files(self._raw),
            self._cases,
            replace(record, refused=refused),
            f"not needed for {self._name}",
        )

    def _errors(self) -> list[Finding]:
        """Return what is wrong with files and cases, with paths relative to the raw folder."""
        errors = []
        for path, reason in self._source.files.refused.items():
            name = printable(path.relative_to(self._raw).as_posix())
            errors.append(Finding("error", name, reason.removeprefix(f"{name} ")))
        for name, paths in self._duplicates.items():
            files = ", ".join(path.relative_to(self._raw).as_posix() for path in paths)
            reason = f"{len(paths)} images have this id: {files}; keep one"
            errors.append(Finding("error", name, reason))
        if self._preparation is not None:
            errors += self._preparation.errors(self._raw)
        return errors


class _Preparation:
    """The cases of a dataset while they are prepared.

    A source with fixed classes has the label of a case numbered immediately. Otherwise, the labels
    are numbered after all of them have been read, because the classes follow from their values.
    """

    def __init__(
        self,
        source: Source,
        spec: DatasetSpec,
        make_plan: MakePlan | None,
        folder: Path | None,
    ) -> None:
        self._source, self._spec, self._make_plan = source, spec, make_plan
        self._folder = folder  # None: nothing is written
        self.plan: PlanWithReasons | None = None  # set when all cases have been read
        self._results: list[CaseResult] = []
        self._classes = ClassAssignment(spec.classes, {})

    def read(self, cases: Sequence[RawCase], progress: Progress, workers: int) -> None:
        """Read, check and store all cases."""
        read = partial(prepare_case, self._source, self._spec, self._folder)
        title = "checking" if self._folder is None else "preparing"
        self._results = map_cases(read, cases, workers, progress, title)
        if not self._spec.classes:
            self._assign_classes()
        self._complete_plan()
        if self._spec.classes or self._folder is None:
            return
        if not any(result.error for result in self._results):
            store = partial(store_class_numbers, self._spec, self._folder)
            self._results = map_cases(store, self._results, workers, progress, "storing labels")

    def errors(self, root: Path) -> list[Finding]:
        """Return the first error of every case, with paths relative to `root`."""
        return [
            Finding("error", result.raw.id, str(result.error).replace(f"{root}/", ""))
            for result in self._results
            if result.error is not None
        ]

    def refused(self) -> dict[Path, str]:
        """Return the files that cause the errors of cases, with these errors."""
        return {
            result.wrong_file: str(result.error)
            for result in self._results
            if result.error is not None
        }

    def description(self) -> Description:
        """Return the description of the dataset, as far as it is known."""
        return complete_description(self._spec, self._classes.classes)

    def notices(self) -> list[str]:
        """Return notes on what was chosen, ignored or not found."""
        notices = [
            *note_unlabeled(self._results),
            *note_turned_labels(self._results),
            *note_missing_groups(self._spec.name, self._results),
            *note_unknown_spacing(self._results),
            *note_resampled_channels(self._results),
            *self._source.notes,
            *self._classes.notes,
        ]
        if self._source.reads_description:
            notices += note_unlike_ct(self._spec.channels, self._statistics())
        if self._spec.description.spacing and any(x.states_spacing for x in self._results):
            option = "--spacing" if self._source.spacing_mm else "the described spacing"
            notices.append(
                f"files that state their spacing keep it: {option} applies to the others only"
            )
        return notices

    def index(self, root: Path, notices: Iterable[Finding]) -> Index:
        """Return the index of the store; `root` contains the raw files."""
        return Index(
            recipe=RECIPE,
            spec=msgspec.structs.replace(
                self._spec, classes=self._classes.classes, description=self.description()
            ),
            cases=tuple(case_info(result, root) for result in self._results),
            notes=tuple(
                notice.what for notice in notices if not self._source.files.reveals(notice.what)
            ),
        )

    def summary(self) -> str:
        """Return one line with the number of cases, their sizes and the classes."""
        count = len(self._results)
        labeled = sum(result.labeled for result in self._results)
        patients = len({result.raw.group for result in self._results})
        of_patients = "" if patients == count else f" of {pluralize(patients, 'patient')}"
        shapes = [result.image.shape for result in self._results if result.image is not None]
        axes = list(zip(*shapes, strict=True))
        smallest = " × ".join(str(min(sides)) for sides in axes)
        largest = " × ".join(str(max(sides)) for sides in axes)
        size = smallest if smallest == largest else f"{smallest} to {largest}"
        names = [info.name for info in self._classes.classes]
        return (
            f"{pluralize(count, 'case')}{of_patients}, {labeled} labeled; size {size}; "
            f"classes: {preview(names, 20)}"
        )

    def channel_lines(self) -> tuple[str, ...]:
        """Return a line per channel about its values."""
        return tuple(channel_lines(self._spec.channels, list(self._statistics().values())))

    def class_lines(self) -> tuple[str, ...]:
        """Return a line per class about what the labels contain."""
        labeled = [result for result in self._results if result.labeled]
        sizes = [result.class_sizes for result in labeled]
        spacings = [result.file_spacing_mm for result in labeled]
        return tuple(class_lines(self._classes.classes, sizes, spacings, self._spec.dims))

    def spacing_line(self) -> str:
        """Return a line about the spacing of the files."""
        spacings = [result.file_spacing_mm for result in self._results]
        return describe_spacings(spacings, self._spec.axes)

    def _statistics(self) -> dict[str, Sequence[ValueStatistics]]:
        """Return the statistics of every channel by case."""
        return {
            result.raw.id: result.image.intensity
            for result in self._results
            if result.image is not None
        }

    def _complete_plan(self) -> None:
        """Make the plan for the number of classes, on which only patch and batch depend."""
        if self._make_plan is not None:
            self.plan = self._make_plan(len(self._classes.classes))
            self._spec = msgspec.structs.replace(self._spec, plan=self.plan.plan)

    def _assign_classes(self) -> None:
        labels = [file for result in self._results for file in result.files]
        unreadable = [x.label_error for x in self._results if x.label_error is not None]
        self._classes = self._source.assign_classes(self._spec, labels, unreadable)
        for result in self._results:
            number_label(result, self._classes)


def _with_spacing(source: Source, spec: DatasetSpec) -> DatasetSpec:
    """Return `spec` with the spacing for files that do not state it: --spacing, or as described."""
    given, described = source.spacing_mm, spec.description.spacing
    if given is not None and len(given) not in (1, spec.dims):
        raise UsageError(
            f"--spacing has {len(given)} numbers, but {spec.name} is {spec.dims}D: "
            f"give 1 or {spec.dims}"
        )
    if given is not None:
        described = given * spec.dims if len(given) == 1 else given
    if described is not None and len(described) != spec.dims:
        raise UsageError(
            f"the described spacing has {len(described)} numbers, but {spec.name} is "
            f"{spec.dims}D: give {spec.dims}"
        )
    description = msgspec.structs.replace(spec.description, spacing=described)
    return msgspec.structs.replace(spec, description=description)


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


def _duplicate_ids(cases: Sequence[RawCase]) -> dict[str, list[Path]]:
    """Return the images of every id that several images have."""
    images: dict[str, list[Path]] = {}
    for case in cases:
        images.setdefault(case.id, []).append(case.image)
    return {name: paths for name, paths in images.items() if len(paths) > 1}


def _publish(folder: Path, store: Path, index: Index) -> None:
    """Write the index, keep the splits of the previous store, and replace this store."""
    write_index(folder, index)
    (folder / "dataset.yaml").write_text(to_yaml(index.spec.description), encoding="utf-8")
    if (store / "splits").is_dir():
        shutil.copytree(store / "splits", folder / "splits")
    replace_folder(folder, store)
