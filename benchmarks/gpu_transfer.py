"""What travels to a GPU machine and back: datasets in 256 gray levels, results in small files."""

import math
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import ROOT, read_json, write_json
from crkd_cli.data.store import Store, write_index
from crkd_cli.errors import CrkdError
from crkd_cli.paths import atomic_write
from crkd_cli.runtime.build import build_method, load_predictor
from crkd_cli.runtime.checkpoint import load_checkpoint, save_checkpoint

KIT = ROOT / "build" / "gpu"  # what is carried
RUNS = ROOT / "runs" / "gpu"
MIB = 2**20
LIMIT = 58 * MIB  # of a packed part; 64 MiB are carried at once, with the checkout
# What comes back at once: 8 files of at most 16 MiB, 64 MiB in all. One file holds the small ones.
FILES, FILE_LIMIT, BACK_LIMIT = 8, 15 * MIB, 60 * MIB
QUANTIZED = "quantized.txt"  # marks a store whose scans were packed
SMALL_FILES = ("*.json", "*.jsonl", "*.txt", "config.yaml")


def pack(root: Path, parts: int, kit: Path = KIT) -> None:
    """Write the store in `root` as `parts` tar files, with scans in 256 gray levels."""
    files = sorted(file for file in root.rglob("*") if file.is_file())
    kit.mkdir(parents=True, exist_ok=True)
    for part in range(parts):
        target = kit / f"{root.name}-{part + 1}of{parts}.tar.xz"
        with tarfile.open(target, "w:xz") as tar, tempfile.TemporaryDirectory() as scratch:
            for file in files[part::parts]:
                packed = _quantized(file, Path(scratch)) if file.parent.name == "images" else file
                tar.add(packed, file.relative_to(root.parent).with_suffix(packed.suffix))
        if target.stat().st_size > LIMIT:
            raise CrkdError(f"{target} is over {LIMIT // MIB} MiB; give --parts {parts + 1}")


def _quantized(file: Path, scratch: Path) -> Path:
    image = np.load(file)
    if image.dtype == np.uint8:
        return file
    low, high = float(image.min()), float(image.max())
    step = (high - low) / 255 or 1.0
    packed = scratch / f"{file.stem}.npz"
    np.savez(packed, levels=np.rint((image - low) / step).astype(np.uint8), low=low, step=step)
    return packed


def unpack(prepared: Path, kit: Path = KIT) -> None:
    """Restore the stores from the parts in `kit`, whichever are there."""
    for part in sorted(kit.glob("*of*.tar.xz")):
        root = prepared / part.name.rpartition("-")[0]
        if root.is_dir() and not (root / QUANTIZED).is_file():
            raise CrkdError(f"{root} exists already, and not from a packed part; remove it")
        root.mkdir(parents=True, exist_ok=True)
        (root / QUANTIZED).touch()
        with tarfile.open(part) as tar:
            tar.extractall(prepared, filter="data")
    for file in prepared.glob("*/images/*.npz"):
        packed = np.load(file)
        levels = packed["levels"].astype(np.float32)
        np.save(file.with_suffix(".npy"), np.float32(packed["low"] + packed["step"] * levels))
        file.unlink()
    for root in prepared.iterdir():
        if (root / QUANTIZED).is_file() and (root / "index.json").is_file():
            write_index(root, Store(root).index)


def bring_back(runs: Sequence[Path], out: Path, *, optimizer: bool = False) -> dict[str, str]:
    """Write the results of `runs` to `out`: runs.tar.xz and weights in parts.

    The weights are those of the predictor in half precision and, with `optimizer`, also last.pth.
    Returns the files that were left out because too much would come back, and why.
    """
    out.mkdir(parents=True, exist_ok=True)
    runs = [run for run in runs if run.is_dir()]
    trained = [run for run in runs if (run / "last.pth").is_file()]
    with tempfile.TemporaryDirectory() as scratch:
        large = {}
        for run in trained:
            large[f"{run.name}/weights.pth"] = Path(scratch) / f"{run.name}.pth"
            save_half(run / "last.pth", Path(scratch) / f"{run.name}.pth")
        if optimizer:
            large |= {f"{run.name}/last.pth": run / "last.pth" for run in trained}
        parts, left_out = _split(large, out)
        write_json(parts, Path(scratch) / "parts.json")
        with tarfile.open(out / "runs.tar.xz", "w:xz") as tar:
            tar.add(Path(scratch) / "parts.json", "parts.json")
            for file in (file for run in runs for name in SMALL_FILES for file in run.glob(name)):
                tar.add(file, f"{file.parent.name}/{file.name}")
    return left_out


def _split(files: dict[str, Path], out: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Split `files` into parts in `out`: ([SHA-256, part, part …] of each, why one is left out)."""
    parts: dict[str, list[str]] = {}
    left_out = {}
    room = FILES - 1, BACK_LIMIT
    for name, file in files.items():
        content = file.read_bytes()
        count = math.ceil(len(content) / FILE_LIMIT)
        if count > room[0] or len(content) > room[1]:
            left_out[name] = f"{len(content) / MIB:.1f} MiB in {count} files are too much"
            continue
        room = room[0] - count, room[1] - len(content)
        parts[name] = [sha256(content).hexdigest()]
        for number in range(count):
            part = f"{name.replace('/', '.')}.{number + 1}of{count}"
            (out / part).write_bytes(content[number * FILE_LIMIT : (number + 1) * FILE_LIMIT])
            parts[name].append(part)
    return parts, left_out


def join(folder: Path, runs: Path = RUNS) -> None:
    """Put what `bring_back` wrote to `folder` into `runs`, checked by its SHA-256.

    weights.pth becomes a checkpoint to evaluate and predict with; last.pth can be resumed.
    """
    try:
        with tarfile.open(folder / "runs.tar.xz") as tar:
            tar.extractall(runs, filter="data")
        for name, (digest, *parts) in read_json(runs / "parts.json").items():
            content = b"".join((folder / part).read_bytes() for part in parts)
            if sha256(content).hexdigest() != digest:
                raise CrkdError(f"{name} is damaged: the parts in {folder} have another SHA-256")
            with atomic_write(runs / name) as temporary:
                temporary.write_bytes(content)
            if name.endswith("weights.pth"):
                restore_half(runs / name)
    except (OSError, tarfile.TarError) as error:
        raise CrkdError(f"{folder} is not complete: {error}") from None


def save_half(file: Path, target: Path) -> None:
    """Save the predictor of the checkpoint `file` alone, its matrices and kernels in float16."""
    checkpoint = load_checkpoint(file)
    weights = load_predictor(checkpoint, torch.device("cpu")).state_dict()
    half = {name: value.half() if value.ndim > 1 else value for name, value in weights.items()}
    save_checkpoint(replace(checkpoint, weights=half, training=None, statistics=None), target)


def restore_half(file: Path) -> None:
    """Turn a file of `save_half` into a checkpoint; other networks of the method start anew."""
    checkpoint = load_checkpoint(file)
    method = build_method(checkpoint.config, checkpoint.spec)
    method.predictor.load_state_dict(checkpoint.weights)
    save_checkpoint(replace(checkpoint, weights=method.state_dict()), file)
