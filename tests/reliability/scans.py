"""Damaged DICOM series and images of several channels: one bad case never ends the folder."""

from pathlib import Path

from tests.reliability import scan_files
from tests.reliability.mutate import mutate_bytes
from tests.reliability.mutate_dicom import mutate_dicom, mutate_folder
from tests.reliability.trial import Fault, Trial
from tests.reliability.workspace import predict, prepare

BATCH = 8  # cases in a folder
SECONDS = 60.0  # for a folder
PRIVATE = ("Quimby", "Zacharias", "PID4711", "19370102")  # of the tags of all series


def dicom(trial: Trial) -> None:
    """Damaged DICOM series, one in each folder, and multi-frame files."""
    source, forms = trial.folder / "source", list(scan_files.SERIES)
    protected = set()
    for number in range(BATCH):
        case = source / "images" / f"m{number}"
        form = forms[number % len(forms)]
        scan_files.write_case(case, scan_files.series(form, number))
        scan_files.write_label(source / "labels" / f"m{number}.nii.gz", number)
        if _damage_series(trial, case):
            protected.add(case.name)
    for form in forms:
        scan_files.write_case(source / "images" / f"good-{form}", scan_files.series(form, BATCH))
        scan_files.write_label(source / "labels" / f"good-{form}.nii.gz", BATCH)
    _check(trial, source, "ct", protected)


def _damage_series(trial: Trial, folder: Path) -> bool:
    """Damage the files of a series; tell whether it must be refused or read unchanged."""
    draw = trial.draw
    files = sorted(folder.iterdir())
    choice = draw.random()
    if choice < 0.2:
        mutate_folder(folder, draw)
        return False
    damage = mutate_bytes if choice < 0.5 else mutate_dicom
    chosen = files if draw.random() < 0.2 else [draw.choice(files)]
    state = draw.getstate()
    before, after = b"", b""
    for file in chosen:
        draw.setstate(state)
        before = file.read_bytes()
        after = damage(before, draw)
        file.write_bytes(after)
    is_cut = len(after) < len(before) and before.startswith(after)
    return is_cut and len(chosen) == 1


def channels(trial: Trial) -> None:
    """Damaged files of images with two channels."""
    draw, source = trial.draw, trial.folder / "source"
    form = draw.choice(list(scan_files.CHANNELS))
    for number in range(BATCH):
        scan_files.write_channels(source, form, f"m{number}", number)
        scan_files.write_label(source / "labels" / f"m{number}.nii.gz", number)
    for number in range(BATCH - 1):  # the last one remains good
        file = draw.choice(sorted((source / "images").glob(f"m{number}[._]*")))
        if draw.random() < 0.15:
            file.unlink()
        else:
            file.write_bytes(mutate_bytes(file.read_bytes(), draw))
    (source / "dataset.yaml").write_text(scan_files.TWO_CHANNELS)
    _check(trial, source, "two", set(), f"m{BATCH - 1}")


def _check(trial: Trial, source: Path, name: str, protected: set[str], good: str = "good-") -> None:
    """Prepare and predict a folder of cases, and note faults."""
    trial.inputs = BATCH
    check = trial.crkd([*prepare(source, trial.folder / "data", name), "--check"], SECONDS)
    out = trial.folder / "out"
    command = predict(source / "images", trial.work.checkpoint(name), out)
    outcome = trial.crkd(command, SECONDS)
    printed = check.stdout + check.stderr + outcome.stdout + outcome.stderr
    for word in PRIVATE:
        if word in printed:
            trial.faults.append(Fault("privacy", f"{word} is printed"))
    stems = sorted(
        {file.name.split(".")[0].split("_")[0] for file in (source / "images").iterdir()}
    )
    for stem in stems:
        masks = [*out.glob(f"{stem}.*"), *out.glob(f"{stem}/*")]
        if not masks and stem not in printed:
            trial.faults.append(Fault("silent", f"{stem} has neither a mask nor a message"))
        elif not masks and stem.startswith(good):
            trial.faults.append(Fault("silent", f"the good {stem} has no mask: {outcome.stderr}"))
        elif stem in protected and masks and stem not in outcome.stderr:
            trial.faults.append(Fault("silent", f"{stem} is truncated, but predicted"))
