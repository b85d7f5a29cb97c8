"""Raw files → prepared store, checked. The store appears whole at the end, or not at all."""

import hashlib
import json
import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw import formats, pictures
from crkd_cli.data.raw.formats import Volume
from crkd_cli.data.sources.base import RawCase, Source
from crkd_cli.data.splits import official_splits, preview
from crkd_cli.data.store import RECIPE, CaseInfo, DatasetSpec, Index
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.paths import replace_folder, temporary_folder
from crkd_cli.progress import Progress


@dataclass(frozen=True)
class Finding:
    """Something that a person should know of the raw files. An error means that nothing is written."""

    level: Literal["error", "notice"]
    where: str
    what: str


@dataclass
class PreparationReport:
    index: Index | None = None  # None if there was an error
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]


def prepare(
    name: str, source: Source, raw: Path, store: Path, progress: Progress, check_only: bool = False
) -> PreparationReport:
    """Check every case under `raw` and write the store, one case in memory at a time.

    Cases are written to a temporary folder beside `store` while they are checked. It replaces the store only if no
    error was found; the splits made for the previous store are kept. Raises CrkdError if the layout is not understood
    or the disk cannot be written.
    """
    raws = source.find(raw)
    spec = source.spec(name, raws)
    if source.spacing_mm is not None and len(source.spacing_mm) not in (1, spec.dims):
        given = len(source.spacing_mm)
        raise UsageError(
            f"--spacing has {given} numbers, but {name} is {spec.dims}D: give 1 or {spec.dims}"
        )
    facts = official_splits(name)
    if facts and not {one.group for one in raws} & {*facts.train, *facts.val, *facts.test}:
        raise CrkdError(
            f"{raw} holds no case of {name}'s official split; for data of your own give another name"
        )
    report = PreparationReport()
    _check_ids(raws, raw, report)
    with nullcontext() if check_only else temporary_folder(store) as folder:
        cases = []
        with progress("checking" if check_only else "preparing", len(raws), "cases") as advance:
            for one in raws:
                try:
                    case = _prepare_case(source, one, spec, raw, None if report.errors else folder)
                except CrkdError as error:
                    report.findings.append(Finding("error", one.id, _shorten(str(error), raw)))
                else:
                    cases.append(case)
                advance(1, note=one.id)
        if not report.errors:
            report.findings += [
                Finding("notice", name, note) for note in _notices(name, source, cases)
            ]
            notes = tuple(finding.what for finding in report.findings)
            report.index = Index(recipe=RECIPE, spec=spec, cases=tuple(cases), notes=notes)
            if folder is not None:
                _publish(folder, store, report.index)
    return report


def _prepare_case(
    source: Source, raw: RawCase, spec: DatasetSpec, root: Path, folder: Path | None
) -> CaseInfo:
    """Read, check and (with a folder) write one case. Raises CrkdError with all that is wrong with it."""
    volume = source.open_image(raw.image, spec)
    label, mapping = None, dict[str, int]()
    if raw.label is not None:
        label, mapping = source.read_label(raw.label, spec)
        _check_pair(raw.label, label, volume)
    intensity = {
        "min": float(volume.array.min()),
        "max": float(volume.array.max()),
        "mean": float(volume.array.mean(dtype=np.float64)),
        "std": float(volume.array.std(dtype=np.float64)),
    }
    stored = source.finish(volume, raw.image, spec).array
    native = label
    box = source.crop(raw.id, label) if source.published_crop else None
    if box is not None:
        stored = stored[(slice(None), *box)]
        label = None if label is None else label[box]
    elif label is not None and spec.stored_size is not None:
        label = pictures.resize(label, spec.stored_size, "nearest")
    smaller = spec.stored_size is not None and volume.size != spec.stored_size
    truth = native if smaller else label
    if folder is not None:
        _write(folder / "images" / f"{raw.id}.npy", stored)
        if label is not None:
            _write(folder / "labels" / f"{raw.id}.npy", label)
        if native is not None and smaller:
            _write_png(folder / "native" / f"{raw.id}.png", native)
    return CaseInfo(
        id=raw.id,
        group=raw.group,
        shape=stored.shape[1:],
        spacing_mm=None if smaller else volume.spacing_mm,
        source=raw.image.relative_to(root).as_posix(),
        sha256=_sha256(raw.image),
        label_sha256=None if truth is None else hashlib.sha256(truth.tobytes()).hexdigest(),
        intensity=intensity,
        mapping=mapping,
        native_shape=volume.size if smaller else None,
    )


def _check_ids(raws: list[RawCase], root: Path, report: PreparationReport) -> None:
    by_id: dict[str, list[RawCase]] = {}
    for raw in raws:
        by_id.setdefault(raw.id, []).append(raw)
    for case, same in by_id.items():
        if len(same) > 1:
            names = ", ".join(raw.image.relative_to(root).as_posix() for raw in same)
            report.findings.append(
                Finding("error", case, f"{len(same)} images have this id: {names}; keep one")
            )


def _check_pair(path: Path, label: NDArray[np.uint8], volume: Volume) -> None:
    """Raises CrkdError unless the label lies on the image voxel by voxel."""
    if label.shape != volume.size:
        raise CrkdError(
            f"{path} has shape {label.shape}, its image {volume.size}; image and label must match"
        )
    of_label = formats.read_label(path).geometry
    if of_label is None or volume.geometry is None:
        return
    half = min(volume.geometry.spacing) / 2
    for name, tolerance in (("spacing", 1e-3), ("origin", half), ("direction", 1e-2)):
        if not np.allclose(
            getattr(of_label, name), getattr(volume.geometry, name), rtol=0, atol=tolerance
        ):
            shown = [
                tuple(round(value, 3) for value in values[::-1])
                for values in (getattr(of_label, name), getattr(volume.geometry, name))
            ]
            order = ", ".join("zyx"[-len(of_label.spacing) :])
            raise CrkdError(
                f"{path} has {name} ({order}) {shown[0]}, its image {shown[1]}; resample or repair the label"
            )


def _notices(name: str, source: Source, cases: list[CaseInfo]) -> list[str]:
    """What preparation chose, mapped or missed, in words."""
    notices = []
    labeled = [case for case in cases if case.labeled]
    if mapped := [case for case in labeled if case.mapping]:
        example = ", ".join(f"{raw} → {number}" for raw, number in mapped[0].mapping.items())
        share = f"{len(mapped)} of {len(labeled)} labels"
        notices.append(f"label values mapped in {share}, as in {mapped[0].id}: {example}")
    if len(labeled) < len(cases):
        notices.append(
            f"{len(cases) - len(labeled)} of {len(cases)} cases have no label: they are unlabeled"
        )
    facts = official_splits(name)
    if facts is not None:
        wanted = (*facts.train, *facts.val, *facts.test)
        present = {case.group for case in cases}
        if missing := [group for group in wanted if group not in present]:
            notices.append(
                f"{len(missing)} of the official split's {len(wanted)} ids are missing: {preview(missing)}"
            )
    shapes = Counter(len(case.shape) for case in cases)
    if cases and all(case.spacing_mm is None for case in cases) and 3 in shapes:
        notices.append(
            "the files do not state their spacing: distances will be in voxels; --spacing states it"
        )
    return notices + source.notes  # what was left out stands last


def _shorten(message: str, root: Path) -> str:
    """`message` with paths relative to the raw root: the table's head names that."""
    return message.replace(f"{root}/", "")


# ── writing ──


def _write(file: Path, array: NDArray[Any]) -> None:
    content = BytesIO()  # numpy's own file writing does not say that a disk is full
    np.save(content, np.ascontiguousarray(array), allow_pickle=False)
    _write_bytes(file, content)


def _write_png(file: Path, label: NDArray[np.uint8]) -> None:
    from PIL import Image

    content = BytesIO()
    Image.fromarray(label).save(content, format="PNG")
    _write_bytes(file, content)


def _write_bytes(file: Path, content: BytesIO) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content.getbuffer())


def _publish(folder: Path, store: Path, index: Index) -> None:
    """Write the index, take over the splits, and put the folder in the store's place."""
    text = json.dumps(msgspec.to_builtins(index), indent=1, ensure_ascii=False)
    (folder / "index.json").write_text(text + "\n", encoding="utf-8")
    if (store / "splits").is_dir():
        shutil.copytree(store / "splits", folder / "splits")
    replace_folder(folder, store)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
