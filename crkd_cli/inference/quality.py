"""Figures about every mask, by which users find those to look at first: quality.csv.

Legend: K − 1 foreground classes, *S spatial axes.
"""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from crkd_cli.data.ranges import Unlike
from crkd_cli.errors import pluralize
from crkd_cli.inference.certainty import Certainty
from crkd_cli.paths import atomic_write
from crkd_cli.text import csv_cell, csv_text, shorten

QUALITY = "quality.csv"
FIRST = 10  # masks that are named
LINE = 72  # characters about a mask
UNITS = ("volume_ml", "area_mm2", "volume_voxels", "area_px")
FIGURES = ("mean_confidence", "disagreement")
UNLIKE = ("unlike_spacing", "unlike_size", "unlike_intensity")
BORDER = "touches_border"

Row = dict[str, str]  # text by column


def quality_row(
    mask: str,
    labels: NDArray[Any],
    spacing: Sequence[float] | None,
    names: Sequence[str],
    certainty: Certainty,
    unlike: Unlike | None,
) -> Row:
    """Return the row of a mask.

    Args:
        mask: Its file, relative to the folder of masks.
        labels: Class numbers [*S].
        spacing: In mm along *S; None: not known.
        names: Those of the K − 1 foreground classes.
        certainty: That of the network.
        unlike: In what the image is unlike the training cases; None: not known.
    """
    unit, factor = _unit(labels.ndim, spacing)
    sizes, components, at_border = [], [], []
    boxes = ndimage.find_objects(labels, len(names))
    for k, (name, box) in enumerate(zip(names, boxes, strict=True), start=1):
        inside = None if box is None else labels[box] == k
        sizes.append(0 if inside is None else int(np.count_nonzero(inside)))
        components.append(0 if inside is None else ndimage.label(inside)[1])
        if box is not None and _touches(box, labels.shape):
            at_border.append(name)
    row = {"mask": mask, **_texts(FIGURES, certainty)}
    for name, size in zip(names, sizes, strict=True):
        row[f"{unit}:{name}"] = f"{size * factor:.6g}"
    for name, count in zip(names, components, strict=True):
        row[f"components:{name}"] = str(count)
    row[BORDER] = "; ".join(at_border)
    row |= _texts(UNLIKE, unlike or (None,) * len(UNLIKE))
    return row


def write_quality(folder: Path, rows: Iterable[Row], names: Sequence[str]) -> list[Row]:
    """Write quality.csv, the least confident mask first, and return the rows in this order."""
    ordered = sorted(rows, key=lambda row: (float(row[FIGURES[0]]), row["mask"]))
    used = {column for row in ordered for column in row}
    columns = [column for column in _columns(names) if column in used]
    with (
        atomic_write(folder / QUALITY) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in ordered:
            writer.writerow([csv_cell(row.get(column, "")) for column in columns])
    return ordered


def read_quality(folder: Path, names: Sequence[str]) -> dict[str, Row]:
    """Return the rows of an existing quality.csv by mask.

    Left out are those of masks that are missing or were replaced later. A file that is damaged, or
    of other classes, has no rows.
    """
    file = folder / QUALITY
    try:
        written = file.stat().st_mtime_ns
        with file.open(encoding="utf-8", newline="") as stream:
            table = list(csv.DictReader(stream, strict=True))
        rows = [_checked(cells, names) for cells in table]
    except (OSError, ValueError, TypeError, AttributeError, csv.Error):
        return {}
    kept = {}
    for row in rows:
        mask = folder / row["mask"]
        if mask.is_file() and mask.stat().st_mtime_ns <= written:
            kept[row["mask"]] = row
    return kept


def _checked(cells: Row, names: Sequence[str]) -> Row:
    """Return the cells that are not empty. Raises an exception if the row cannot be used."""
    row = {column: csv_text(cell) for column, cell in cells.items() if cell}
    for column, text in row.items():
        kind = column.partition(":")[0]
        if kind == "components":
            int(text)
        elif kind in (*UNITS, *FIGURES) and not math.isfinite(float(text)):
            raise ValueError(f"{column} is {text}")
    if not {"mask", FIGURES[0]} <= row.keys() <= set(_columns(names)):
        raise ValueError("other columns")
    return row


def describe_first(rows: Sequence[Row]) -> list[str]:
    """Return lines that name the least confident masks; `rows` as `write_quality` returns them."""
    first = rows[:FIRST]
    if not first:
        return []
    title = f"look at these first, the masks with the lowest confidence of {len(rows)}:"
    if len(rows) == len(first):
        title = f"confidence in {pluralize(len(rows), 'mask')}, the lowest first:"
    return [title, *(_describe(row) for row in first)]


def _describe(row: Row) -> str:
    notes = []
    sizes = [float(text) for column, text in row.items() if column.partition(":")[0] in UNITS]
    if not any(sizes):
        notes.append("empty")
    unlike = [column.partition("_")[2] for column in UNLIKE if row.get(column) == "yes"]
    if unlike:
        notes.append(f"{' and '.join(unlike)} unlike training")
    parts = {column: text for column, text in row.items() if column.startswith("components:")}
    divided = [column for column, text in parts.items() if int(text) > 1]
    if len(divided) == 1:
        name = divided[0].partition(":")[2]
        notes.append(f"{name} in {parts[divided[0]]} parts")
    elif divided:
        notes.append(f"{len(divided)} classes in several parts")
    if row.get(BORDER):
        notes.append("touches the border")
    text = f"{row['mask']}: {'; '.join(notes)}" if notes else row["mask"]
    return f"  {float(row[FIGURES[0]]):.2f}  {shorten(text, LINE)}"


def _columns(names: Sequence[str]) -> list[str]:
    """Return all columns that a file may have, in order."""
    sizes = [f"{unit}:{name}" for unit in UNITS for name in names]
    components = [f"components:{name}" for name in names]
    return ["mask", *FIGURES, *sizes, *components, BORDER, *UNLIKE]


def _unit(dims: int, spacing: Sequence[float] | None) -> tuple[str, float]:
    """Return the column of sizes, and the size of a voxel or pixel."""
    ml, mm2, voxels, px = UNITS
    if spacing is None:
        return (voxels if dims == 3 else px), 1.0
    return (ml, math.prod(spacing) / 1000) if dims == 3 else (mm2, math.prod(spacing))


def _touches(box: Sequence[slice], shape: Sequence[int]) -> bool:
    sides = zip(box, shape, strict=True)
    return any(part.start == 0 or part.stop == side for part, side in sides)


def _texts(columns: Sequence[str], values: Iterable[float | bool | None]) -> dict[str, str]:
    """Return values as text: yes or no, four decimals, or nothing."""
    texts = {}
    for column, value in zip(columns, values, strict=True):
        if isinstance(value, bool):
            texts[column] = "yes" if value else "no"
        else:
            texts[column] = "" if value is None else f"{value:.4f}"
    return texts
