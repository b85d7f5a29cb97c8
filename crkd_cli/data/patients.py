"""Group images by patient: by a table, or by a part of their names."""

import csv
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from crkd_cli.data import patterns
from crkd_cli.data.cases import RawCase
from crkd_cli.data.raw import formats
from crkd_cli.data.raw.limits import check_regular
from crkd_cli.data.splits import preview
from crkd_cli.errors import CrkdError, pluralize
from crkd_cli.text import printable

TABLE = "patients.csv"


def group_by_table(
    cases: Sequence[RawCase], root: Path, table: Path, notes: list[str]
) -> list[RawCase]:
    """Set the groups of `cases`, whose images are below `root`, to the patients in `table`.

    The table names images by file name, with or without suffix, or by path. Raises CrkdError if
    an image is missing or has two patients.
    """
    rows = _read(table)
    names = _Names(cases, root)
    patients: dict[str, str] = {}
    unused = []
    for image, patient in rows:
        case = names.case(image)
        if case is None:
            unused.append(image)
            continue
        other = patients.setdefault(case, patient)
        if other != patient:
            raise CrkdError(
                f"{table} assigns the image {printable(image)} to two patients, "
                f"{printable(other)} and {printable(patient)}; keep one line"
            )
    missing = [printable(case.id) for case in cases if case.id not in patients]
    if missing:
        raise CrkdError(
            f"{table} lacks {pluralize(len(missing), 'image')}: {preview(missing)}; "
            "add a line with the patient for each"
        )
    if unused:
        lines = f"{len(unused)} ({preview([printable(image) for image in unused])})"
        notes.append(f"lines of {table.name} without an image, ignored: {lines}")
    return [replace(case, group=patients[case.id]) for case in cases]


def group_by_pattern(cases: Sequence[RawCase], root: Path, pattern: str) -> list[RawCase]:
    """Set the groups of `cases` to what `{patient}` is in `pattern`.

    A pattern with / applies to the path of the image below `root`, others to the id of the case.
    Raises CrkdError if it does not match every case.
    """
    grouped, failed = [], []
    for case in cases:
        name = case.image.relative_to(root).as_posix() if "/" in pattern else case.id
        patient = next(patterns.match(pattern, _nfc(name), "patient"), None)
        if patient is None:
            failed.append(printable(name))
        else:
            grouped.append(replace(case, group=patient))
    if failed:
        raise CrkdError(
            f"the pattern patients: {pattern!r} does not match {pluralize(len(failed), 'image')} "
            f"in {root}: {preview(failed)}; correct it, or list the patients in {TABLE}"
        )
    return grouped


def hide_patients(cases: Sequence[RawCase]) -> list[RawCase]:
    """Name groups after one of their cases if the paths of their DICOM files name the patient."""
    ids: dict[str, list[str]] = {}
    for case in cases:
        ids.setdefault(case.group, []).append(case.id)
    private = {case.group for case in cases if case.is_private}
    return [
        replace(case, group=min(ids[case.group])) if case.group in private else case
        for case in cases
    ]


class _Names:
    """The names under which a table may list an image."""

    def __init__(self, cases: Sequence[RawCase], root: Path) -> None:
        self._cases: dict[str, str | None] = {}  # None: several images have this name
        for case in cases:
            path = _nfc(case.image.relative_to(root).as_posix())
            if len(case.images[0].slices) > 1:  # DICOM: its folder
                path = path.rpartition("/")[0]
            name = path.rpartition("/")[2]
            for alias in {path, name, formats.stem(Path(name))} - {case.id}:
                self._cases[alias] = None if alias in self._cases else case.id
        self._cases |= {case.id: case.id for case in cases}

    def case(self, image: str) -> str | None:
        """Return the case of an image in the table, if there is one."""
        name = _nfc(image)
        return self._cases.get(name) or self._cases.get(formats.stem(Path(name)))


def _read(table: Path) -> list[tuple[str, str]]:
    """Return (image, patient) of each line of `table`. Raises CrkdError if one is missing."""
    check_regular(table)
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise CrkdError(f"{table} cannot be read: {error.strerror or error}") from None
    except (ValueError, csv.Error) as error:
        raise CrkdError(f"{table} cannot be read ({error}); save it as CSV in UTF-8") from None

    entries = []
    for line, row in rows:
        image = (row.get("image") or "").strip()
        patient = (row.get("patient") or "").strip()
        if not image or not patient:
            missing = "patient" if image else "image"
            raise CrkdError(
                f"{table}, line {line}, lacks the {missing}; expected an image and its patient, "
                "and as the first line: image,patient"
            )
        entries.append((image, patient))
    return entries


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)
