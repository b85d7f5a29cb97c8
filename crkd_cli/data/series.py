"""Find the DICOM series among the files of a folder, each of which is an image.

Patients are never named: not in the ids of cases, the groups, or the names of files in a report.
"""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from crkd_cli.data.cases import DicomCase, ImageFile
from crkd_cli.data.choose_series import Choice, choose
from crkd_cli.data.dicom_series import DicomFile, Series, group_series, pseudonym
from crkd_cli.data.inventory import FileRecord, RawFile, SeriesFile
from crkd_cli.data.layout import IMAGES, LABELS, SIDECARS, TEST_PARTS
from crkd_cli.data.privacy import patient_words, reveals
from crkd_cli.data.raw import dicom, formats
from crkd_cli.errors import CrkdError, pluralize
from crkd_cli.text import printable, shorten

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # the start of their SOP classes
# Folders with these names are not named after a case.
COMMON_FOLDERS = ("", *map(str.lower, (*IMAGES, *LABELS)), *TEST_PARTS)
MAX_LINES = 10
NOT_CHOSEN = "another DICOM series than the description says"


@dataclass
class FoundSeries:
    """The files of a folder, in which every series is one file."""

    files: list[RawFile]
    series: list[Series] = field(default_factory=list)  # that are used
    lines: list[str] = field(default_factory=list)  # what was found, to be shown but not stored


def find_series(
    files: Sequence[RawFile],
    record: FileRecord,
    selection: str | dict[str, str] | None = None,
) -> FoundSeries:
    """Return `files` with every DICOM series as one file, the first of its slices.

    `selection` is a description or UID of the series to use, with `*` for any text, or one per
    channel: then the series of a study or a folder are one case. `record` receives the objects
    that are no images, and the series that are not used. Raises CrkdError if `selection` fits no
    series, or if pydicom is missing.
    """
    candidates = [file for file in files if _may_be_dicom(file) and dicom.is_dicom(file.path)]
    if not candidates and selection is not None:
        raise CrkdError("the description chooses DICOM series, but there are none; drop series")
    if not candidates:
        return FoundSeries(list(files))
    paths = {file.path for file in candidates}
    others = [file for file in files if file.path not in paths]
    if not dicom.is_available():
        first, *more = candidates
        and_more = f" (and {len(more)} more)" if more else ""
        raise CrkdError(f"{printable(first.path)}{and_more} {dicom.NEEDS_PYDICOM}")
    images, damaged = _read_all(candidates, record)
    all_series = _split_off_captures(group_series(images), record)
    all_series = _refuse_incomplete(all_series, damaged)
    cases = [Choice((series,), series.problem) for series in all_series]
    channels: list[str] = []
    if selection is not None:
        cases = choose(all_series, selection)
        channels = [] if isinstance(selection, str) else list(selection)
    used = dict.fromkeys(series for case in cases for series in case.series)
    for series in all_series:
        if series not in used:
            _leave_out(series, NOT_CHOSEN, record)
    listed = _as_files(cases, channels, _patients(all_series), record)
    return FoundSeries(_sorted([*others, *damaged, *listed]), list(used), _lines(list(used)))


def _may_be_dicom(file: RawFile) -> bool:
    """Tell whether the content of a file decides: its name is not that of another format."""
    name = file.name.lower()
    if file.skipped or file.problem or name.endswith((*SIDECARS, *formats.DATA_SUFFIXES)):
        return False
    return formats.suffix(file.path) in ("", *dicom.SUFFIXES)


def _read_all(
    candidates: Iterable[RawFile], record: FileRecord
) -> tuple[list[DicomFile], list[RawFile]]:
    """Return the files with images, and those that are damaged."""
    images, damaged = [], []
    for file in candidates:
        try:
            tags = dicom.read_tags(file.path)
        except CrkdError as error:
            problem = str(error).removeprefix(f"{file.path} ")
            case = DicomCase((ImageFile(file.path, (file.path,)),))
            damaged.append(file._replace(problem=problem, dicom=case))
            continue
        image = DicomFile(file, tags)
        record.patient_words |= patient_words(tags.patient_name, tags.patient)
        if reason := _why_no_image(image):
            _leave_out(Series((image,)), reason, record)
        else:
            images.append(image)
    return images, damaged


def _why_no_image(file: DicomFile) -> str:
    """Return why a DICOM file is not an image to segment, or ""."""
    if file.tags.sop_class == dicom.DIRECTORY or file.raw.path.name.upper() == "DICOMDIR":
        return "the directory of a DICOM medium"
    if not file.tags.is_image:
        return f"a DICOM object without an image: {file.tags.kind}"
    return "a DICOM localizer (scout view)" if file.tags.is_localizer else ""


def _split_off_captures(all_series: list[Series], record: FileRecord) -> list[Series]:
    """Return the series without screenshots, if there are volumes."""
    if all(len(series.size) == 2 for series in all_series):
        return all_series
    kept = []
    for series in all_series:
        if len(series.size) == 2 and series.tags.sop_class.startswith(SECONDARY_CAPTURE):
            _leave_out(series, "a DICOM secondary capture beside volumes", record)
        else:
            kept.append(series)
    return kept


def _refuse_incomplete(all_series: Sequence[Series], damaged: Iterable[RawFile]) -> list[Series]:
    """Return the series; one whose folder also has a damaged file probably lacks that slice."""
    counts = Counter(series.folder for series in all_series if len(series.files) > 1)
    names = {file.name.rpartition("/")[0]: file.name for file in damaged}
    checked = []
    for series in all_series:
        is_only = len(series.files) > 1 and counts[series.folder] == 1
        if is_only and series.folder in names and not series.problem:
            file = names[series.folder]
            shown = "a file" if reveals(file, series.words) else printable(file)
            problem = f"may lack a slice, because {shown} is damaged; copy it again"
            series = replace(series, problem=problem)
        checked.append(series)
    return checked


def _patients(all_series: Iterable[Series]) -> dict[str, str]:
    """Return a pseudonym for every patient.

    Patients are known by their ID. Without one, a study is a patient, and else a series.
    """
    smallest: dict[str, str] = {}
    for series in all_series:
        patient, unique = _patient(series), series.unique
        smallest[patient] = min(smallest.get(patient, unique), unique)
    return {patient: f"patient-{pseudonym(unique)}" for patient, unique in smallest.items()}


def _patient(series: Series) -> str:
    return series.tags.patient or series.tags.study or series.unique


def _as_files(
    cases: Sequence[Choice],
    channels: Sequence[str],
    patients: Mapping[str, str],
    record: FileRecord,
) -> list[RawFile]:
    """Return every case as one file, with the name of its folder if that contains no other."""
    per_folder = Counter(_case_folder(case.series) for case in cases)
    listed = []
    for case in cases:
        folder = _case_folder(case.series)
        is_named = per_folder[folder] == 1 and Path(folder).name.lower() not in COMMON_FOLDERS
        file = _as_file(case, folder if is_named else "", channels, patients)
        assert file.dicom is not None
        shown = file.dicom.id if file.dicom.is_private else file.name
        _group_files(case.series, shown, file.dicom.is_private, record)
        listed.append(file)
    return listed


def _as_file(
    case: Choice, name: str, channels: Sequence[str], patients: Mapping[str, str]
) -> RawFile:
    """Return a case as one file called `name` unless that is empty."""
    first = case.series[0]
    files = [file.raw for series in case.series for file in series.files]
    is_private = any(series.is_private for series in case.series)
    id = first.pseudonym if is_private else ""
    if len(files) == 1:
        name = files[0].name
    elif not name:
        id = first.pseudonym
        name = f"{_case_folder(case.series)}/{id}".lstrip("/")
    images = tuple(series.image for series in case.series)
    if len(channels) > 1 and not case.problem:
        named = zip(images, channels, strict=True)
        images = tuple(image._replace(channel=channel) for image, channel in named)
    names = tuple(file.name for file in files)
    dicom_case = DicomCase(images, id, patients[_patient(first)], is_private, names)
    return RawFile(images[0].path, name, case.problem, dicom=dicom_case)


def _case_folder(case: tuple[Series, ...]) -> str:
    folders = {series.folder for series in case}
    return posixpath.commonpath(folders) if len(folders) > 1 else folders.pop()


def _leave_out(series: Series, reason: str, record: FileRecord) -> None:
    name = series.folder or series.pseudonym
    if len(series.files) == 1:
        name = series.files[0].raw.name
    shown = series.pseudonym if series.is_private else name
    _group_files((series,), shown, series.is_private, record)
    record.left_out[series.image.path] = reason


def _group_files(case: Iterable[Series], name: str, is_private: bool, record: FileRecord) -> None:
    """Record how the files of a case are listed: together, and without the patient's name."""
    files = [file for series in case for file in series.files]
    for number, file in enumerate(files, start=1):
        shown = f"{name}/{number}" if is_private else ""
        record.series[file.raw.path] = SeriesFile(files[0].raw.path, name, shown)


def _lines(used: Sequence[Series]) -> list[str]:
    """Return a line per description and modality: the number of series, and their sizes."""
    groups: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for series in used:
        groups[series.title, printable(shorten(series.tags.modality))].append(series)
    lines = []
    for (title, modality), group in groups.items():
        lines.append(
            f"DICOM series {title}: {len(group)}, {modality or 'no modality'}, {_sizes(group)}"
        )
    if len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES], f"and {pluralize(len(lines) - MAX_LINES, 'more description')}"]
    return lines


def _sizes(group: Sequence[Series]) -> str:
    """Return the sizes of series, such as 512 × 512 × 90 to 200."""
    texts = []
    for axis in zip(*(series.size for series in group), strict=False):
        smallest, largest = min(axis), max(axis)
        texts.append(str(smallest) if smallest == largest else f"{smallest} to {largest}")
    return " × ".join(texts)


def _sorted(files: Iterable[RawFile]) -> list[RawFile]:
    return sorted(files, key=lambda file: file.name)
