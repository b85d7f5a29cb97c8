"""Damaged image files, many in a folder: one bad file never ends the folder."""

import gzip
import hashlib
import shutil
from functools import cache
from pathlib import Path

from tests.reliability.originals import Mutant, Original, image, label, originals
from tests.reliability.trial import Fault, Trial, digest
from tests.reliability.workspace import predict, prepare

BATCH = 24
SECONDS = 60.0  # for a folder


@cache
def images(dims: int) -> list[Original]:
    return [original for original in originals(image) if original.dims == dims]


@cache
def labels(dims: int) -> list[Original]:
    return [original for original in originals(label) if original.dims == dims]


def pictures(trial: Trial) -> None:
    """Damaged pictures of every format in one folder."""
    _folder(trial, 2)


def volumes(trial: Trial) -> None:
    """Damaged volumes of every format in one folder."""
    _folder(trial, 3)


def _folder(trial: Trial, dims: int) -> None:
    source = trial.folder / "source"
    for name in ("images", "labels"):
        (source / name).mkdir(parents=True)
    reference = _reference(trial, dims)
    good = [Mutant(original, original.data, original.parts, True) for original in images(dims)]
    mutants = {
        f"m{n:03d}": trial.draw.choice(images(dims)).mutate(trial.draw) for n in range(BATCH)
    }
    mutants |= {f"good{n}": mutant for n, mutant in enumerate(good[:3])}
    for stem, mutant in mutants.items():
        mutant.write(source / "images", stem)
        _good_label(dims).write(source / "labels", stem)
    trial.inputs = BATCH
    before = len(trial.faults)
    trial.crkd([*prepare(source, trial.folder / "data", dims), "--check"], SECONDS)
    checkpoint, out = trial.work.checkpoint(dims), trial.folder / "out"
    outcome = trial.crkd(predict(source / "images", checkpoint, out), SECONDS)
    if len(trial.faults) > before:
        _find(trial, dims, mutants)
        return
    for stem, mutant in mutants.items():
        made = result(out, stem)
        if made is None and f"{stem}{mutant.original.suffix}" not in outcome.stderr:
            trial.faults.append(Fault("silent", f"{stem} has neither a mask nor a message"))
        elif made is None and stem.startswith("good"):
            trial.faults.append(Fault("silent", f"the good {mutant.original.name} has no mask"))
        elif made not in (None, reference[mutant.original.name]) and mutant.protected:
            trial.faults.append(
                Fault("silent", f"{mutant.original.name}: {stem} reads differently")
            )


def _find(trial: Trial, dims: int, mutants: dict[str, Mutant]) -> None:
    """Note the faults of every single file, to name those that caused the faults of the folder."""
    for stem, mutant in mutants.items():
        single = Trial(trial.work, trial.folder / stem, trial.draw)
        (single.folder / "images").mkdir(parents=True)
        path = mutant.write(single.folder / "images", stem)
        single.crkd(predict(path, trial.work.checkpoint(dims), single.folder / "out"))
        (single.folder / "labels").mkdir()
        _good_label(dims).write(single.folder / "labels", stem)
        single.crkd([*prepare(single.folder, single.folder / "data", dims), "--check"])
        trial.faults += [
            Fault(fault.kind, f"{mutant.original.name}: {fault.what}") for fault in single.faults
        ]


_references: dict[int, dict[str, str | None]] = {}


def _reference(trial: Trial, dims: int) -> dict[str, str | None]:
    """Return what the undamaged file of every format gives."""
    if dims in _references:
        return _references[dims]
    folder = trial.folder / "reference"
    folder.mkdir()
    for number, original in enumerate(images(dims)):
        Mutant(original, original.data, original.parts, True).write(folder, f"r{number}")
    out = trial.folder / "reference-out"
    outcome = trial.crkd(predict(folder, trial.work.checkpoint(dims), out), SECONDS)
    results = {}
    for number, original in enumerate(images(dims)):
        results[original.name] = result(out, f"r{number}")
        if results[original.name] is None:
            trial.faults.append(Fault("reference", f"{original.name}: {outcome.stderr}"))
    _references[dims] = results
    return results


def result(out: Path, stem: str) -> str | None:
    """Return a digest of the mask (with its geometry) and the probabilities of a case, or None."""
    masks = [path for path in sorted(out.glob(f"{stem}.*")) if path.is_file()]
    if not masks:
        return None
    total = hashlib.sha256((out / "probabilities" / f"{stem}.npz").read_bytes())
    for mask in masks:
        data = mask.read_bytes()
        content = gzip.decompress(data) if mask.suffix == ".gz" else data
        total.update(content.replace(stem.encode(), b"STEM"))
    return total.hexdigest()


@cache
def _good_label(dims: int) -> Mutant:
    name = "png-gray" if dims == 2 else "nii-gz"
    original = next(original for original in labels(dims) if original.name == name)
    return Mutant(original, original.data, original.parts, True)


def damaged_label(trial: Trial) -> str | None:
    """A damaged label map beside intact ones."""
    dims = trial.draw.choice((2, 3))
    original = trial.draw.choice(labels(dims))
    suffix = ".png" if dims == 2 else ".nii.gz"
    source = trial.folder / "source"
    for name in ("images", "labels"):
        (source / name).mkdir(parents=True)
        for number in range(3):
            file = f"{name}/case{number}{suffix}"
            shutil.copy(trial.work.source(dims) / file, source / file)
    (source / "labels" / f"case0{suffix}").unlink()
    mutant = Mutant(original, original.data, original.parts, True)
    if not trial.intact:
        mutant = original.mutate(trial.draw)
    mutant.write(source / "labels", "case0")
    outcome = trial.crkd(prepare(source, trial.folder / "data", dims))
    if outcome.code or not mutant.protected:
        return None
    return digest(trial.folder / "data" / "prepared" / f"own{dims}d" / "labels")
