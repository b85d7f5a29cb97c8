"""The files of an evaluation: cases.csv, with a row per case and class, and summary.json.

summary.json holds the digests of cases.csv and of its own content, which reveal files that were
edited or belong to different evaluations.
Legend: N cases, K − 1 foreground classes, M metrics.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.store import CaseInfo, ClassInfo
from crkd_cli.errors import CrkdError
from crkd_cli.evaluation.scorer import CaseScores
from crkd_cli.metrics.names import higher_is_better
from crkd_cli.paths import atomic_write, sync
from crkd_cli.text import csv_cell, csv_text

# Raised when the results of earlier versions are not comparable.
FORMAT = "crkd evaluation 2"
SUMMARY, CASES = "summary.json", "cases.csv"
RENEW = "run crkd evaluate again"
# What reading a damaged JSON or CSV file may raise.
DAMAGE = (
    OSError,
    ValueError,  # also text that is not UTF-8
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    csv.Error,
    msgspec.ValidationError,
)


class TableFacts(msgspec.Struct, frozen=True):
    """What summary.json says about cases.csv."""

    rows: int
    sha256: str


@dataclass(frozen=True)
class CaseTable:
    """The content of cases.csv."""

    cases: list[str]
    groups: list[str]  # patient of every case
    scores: NDArray[np.float64]  # [N, K − 1, M], NaN if undefined
    truth: NDArray[np.int64]  # [N, K − 1]: sizes of the true masks, in pixels or voxels
    predicted: NDArray[np.int64]  # [N, K − 1]


def table_bytes(
    protocol: str,
    cases: Sequence[CaseInfo],
    classes: Sequence[ClassInfo],
    metrics: Sequence[str],
    scores: Sequence[CaseScores],
) -> bytes:
    """Return the content of cases.csv; `classes` are the foreground classes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    head = ["protocol", "case", "group", "class", "value", "truth_size", "predicted_size"]
    writer.writerow([*head, *metrics])
    for case, (case_scores, truth, predicted) in zip(cases, scores, strict=True):
        for k, info in enumerate(classes):
            names = [csv_cell(name) for name in (protocol, case.id, case.group, info.name)]
            cells = ["" if math.isnan(value) else f"{value:.6f}" for value in case_scores[k]]
            writer.writerow([*names, info.value, truth[k], predicted[k], *cells])
    return text.getvalue().encode("utf-8")


def table_facts(table: bytes, rows: int) -> dict[str, Any]:
    """Return the entry of summary.json about cases.csv."""
    return {"rows": rows, "sha256": hashlib.sha256(table).hexdigest()}


def sealed(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the content of summary.json with its digest as the last entry."""
    content = {key: value for key, value in tree.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True)
    return {**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def write_files(folder: Path, summary: dict[str, Any], table: bytes) -> None:
    """Write cases.csv and summary.json; neither is replaced unless both could be written.

    An evaluation exists if it has a summary: a kill between the two leaves none, never a half one.
    """
    text = json.dumps(summary, indent=2, allow_nan=False)
    with atomic_write(folder / SUMMARY) as summary_file:
        summary_file.write_text(text + "\n", encoding="utf-8")
        sync(summary_file)
        with atomic_write(folder / CASES) as cases_file:
            cases_file.write_bytes(table)
            sync(cases_file)
            (folder / SUMMARY).unlink(missing_ok=True)


def read_summary(file: Path) -> dict[str, Any]:
    """Read summary.json. Raises CrkdError if it is damaged or of another version."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        version = tree.get("format")
        if version == FORMAT and tree != sealed(tree):
            raise ValueError("its digest does not match its content")
        json.dumps(tree, ensure_ascii=False).encode("utf-8")  # no half of a surrogate pair
    except DAMAGE as error:
        raise damaged(file, error) from None
    if version != FORMAT:
        raise CrkdError(f"{file} was written by another version of crkd; {RENEW}")
    summary: dict[str, Any] = tree
    return summary


def read_table(
    file: Path, facts: TableFacts, classes: dict[str, int], metrics: Sequence[str]
) -> CaseTable:
    """Read cases.csv, which has the foreground `classes` with these values.

    Raises CrkdError if it is damaged, or if `facts` from summary.json describe another table.
    """
    try:
        if not file.is_file():
            raise ValueError("it is missing")
        content = file.read_bytes()
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8"), newline="")))
        if table_facts(content, len(rows)) != msgspec.to_builtins(facts):
            raise ValueError(f"it is not the table of {facts.rows} rows that {SUMMARY} describes")
        return _parse_rows(rows, classes, metrics)
    except DAMAGE as error:
        raise damaged(file, error) from None


def damaged(file: Path, error: Exception) -> CrkdError:
    """Return the error that names a damaged file of an evaluation."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return CrkdError(f"{file} cannot be used ({reason}); {RENEW}")


def _parse_rows(
    rows: list[dict[str, str]], classes: dict[str, int], metrics: Sequence[str]
) -> CaseTable:
    """Return the table of `rows`. Raises ValueError or KeyError if they are damaged."""
    patients: dict[str, str] = {}
    scores, sizes = {}, {}
    for row in rows:
        case, name = csv_text(row["case"]), csv_text(row["class"])
        patients[case] = csv_text(row["group"])
        if classes[name] != int(row["value"]):
            raise ValueError(f"class {name} has value {row['value']}, not {classes[name]}")
        scores[case, name] = [_parse_score(metric, row[metric]) for metric in metrics]
        sizes[case, name] = [_parse_size(row[key]) for key in ("truth_size", "predicted_size")]
    if not rows or not len(rows) == len(scores) == len(patients) * len(classes):
        raise ValueError("rows are missing or duplicated")

    keys = [[(case, name) for name in classes] for case in patients]
    by_case = np.array([[sizes[key] for key in line] for line in keys], dtype=np.int64)
    return CaseTable(
        cases=list(patients),
        groups=list(patients.values()),
        scores=np.array([[scores[key] for key in line] for line in keys], dtype=np.float64),
        truth=by_case[..., 0],
        predicted=by_case[..., 1],
    )


def _parse_score(metric: str, cell: str) -> float:
    """Return a score; NaN for an empty cell. Raises ValueError if the metric has no such value."""
    if not cell:
        return math.nan
    score = float(cell)
    limit = 1.0 if higher_is_better(metric) else math.inf
    if not (math.isfinite(score) and 0.0 <= score <= limit):
        raise ValueError(f"{cell} is not a value of {metric}")
    return score


def _parse_size(cell: str) -> int:
    size = int(cell)
    if size < 0:
        raise ValueError(f"{cell} is not a size")
    return size
