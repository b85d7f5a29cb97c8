r"""Check, train and score on a GPU machine that has no network and is lent for minutes.

On the machine that has the prepared datasets, in a checkout with its environment:

    python -m benchmarks.gpu pack acdc --parts 2        # build/gpu/acdc-1of2.tar.xz …
    pip download --dest build/gpu/wheels --no-deps --only-binary :all: --python-version 3.12 msgspec
    cp -r .venv/lib/python3*/site-packages/medpy build/gpu/medpy

Carry the checkout and these files to the GPU machine. There, in the checkout:

    export PYTHONPATH=$PWD:$PWD/build/gpu CRKD_COMMIT=0123abc    # the commit that was carried
    pip install --no-index --no-deps --target build/gpu build/gpu/wheels/*.whl
    python -m benchmarks.gpu unpack                     # once all parts of a dataset are there
    python -m benchmarks.gpu check                      # (a) every method beside the CPU
    python -m pytest -q -m gpu $(grep -rl mark.gpu tests)
    python -m benchmarks.gpu train --seconds 420 \
        "--dataset acdc --labeled 3" "--dataset acdc --labeled 3 --method unimatch"     # (b)
    python -m benchmarks.gpu train --seconds 420 \
        "--dataset la --labeled 4" "--dataset la --labeled 4 --method supervised"       # (c)

`train` starts its runs side by side, stops them when the time is up, and writes records of their
scores to $OUT, for benchmarks/results; leave it 90 seconds for that. The same command resumes them.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import ROOT, environment, slug, write_json
from benchmarks.inputs import Inputs, Sizes, synthetic
from benchmarks.record import make_record
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError
from crkd_cli.methods import METHODS
from crkd_cli.runtime.device import describe, pick_device, pick_precision
from crkd_cli.training.loop import train

KIT = ROOT / "build" / "gpu"
LIMIT = 60 * 2**20  # bytes of a part; 64 MiB are carried at once, with the checkout
ON_CPU = ("train.device=cpu", "train.precision=fp32")
# Devices draw dropout differently, and rounding decides which pixels pass a threshold.
NEAR = 0.2
SMALL = Sizes((4, 64, 64), (64, 64, 32), (64, 64), 4, (48, 48, 16), (24, 24, 8), 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("pack", "unpack", "check", "train"))
    parser.add_argument("names", nargs="*", help="pack: dataset; train: options of crkd train")
    parser.add_argument("--parts", type=int, default=1, help="files to pack a dataset in")
    parser.add_argument("--seconds", type=float, default=420.0, help="of training")
    parser.add_argument("--data-root", type=Path, help="default: data (pack), build/gpu/data")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
    args = parser.parse_intermixed_args()
    data_root = args.data_root or (Path("data") if args.step == "pack" else KIT / "data")
    try:
        if args.step == "pack":
            for name in args.names:
                pack(Store(data_root / "prepared" / name).root, args.parts)
        elif args.step == "unpack":
            unpack(data_root / "prepared")
        elif args.step == "train":
            train_runs(args.names, args.seconds, data_root, args.out)
        elif not check(args.out):
            raise CrkdError("a loss is not finite, or is far from that on the CPU")
    except CrkdError as error:
        sys.exit(f"error: {error}")


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
        size = target.stat().st_size
        print(f"{target}: {size / 2**20:.1f} MiB", file=sys.stderr)
        if size > LIMIT:
            raise CrkdError(f"{target} is over {LIMIT >> 20} MiB; give --parts {parts + 1}")


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
        with tarfile.open(part) as tar:
            tar.extractall(prepared, filter="data")
    for file in prepared.glob("*/images/*.npz"):
        packed = np.load(file)
        levels = packed["levels"].astype(np.float32)
        np.save(file.with_suffix(".npy"), np.float32(packed["low"] + packed["step"] * levels))
        file.unlink()


def check(out: Path, steps: int = 3) -> bool:
    """Compare a few steps of every method with the CPU; on a GPU, measure the memory, too."""
    device = pick_device()
    name = describe(device, pick_precision("auto", device))
    rows = []
    with tempfile.TemporaryDirectory() as small, tempfile.TemporaryDirectory() as large:
        inputs, published = synthetic(Path(small), SMALL), synthetic(Path(large))
        for dataset, method in product(("acdc", "la"), METHODS.names()):
            cpu = _losses(inputs, dataset, method, steps, *ON_CPU)
            losses = _losses(inputs, dataset, method, steps)
            difference = float(np.abs(np.array(losses) / np.array(cpu) - 1).max())  # NaN stays
            row = {"data": dataset, "method": method, "losses": losses, "cpu": cpu}
            row["difference"] = round(difference, 4)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                _losses(published, dataset, method, 1)
                row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            rows.append(row)
            print(json.dumps(row), file=sys.stderr)
    facts = {"command": "python -m benchmarks.gpu check", **environment(), "device": name}
    write_json({**facts, "rows": rows}, out / f"check-{slug(name)}.json")
    return all(row["difference"] < NEAR for row in rows)


def _losses(inputs: Inputs, dataset: str, method: str, steps: int, *sets: str) -> list[float]:
    sets = (f"train.steps={steps}", "train.log_every=1", *sets)
    run = inputs.run(dataset, *sets, method=method)
    losses: list[float] = []
    train(run, lambda step, values: losses.append(values["total"]))
    return losses


def train_runs(runs: list[str], seconds: float, data_root: Path, out: Path) -> None:
    """Train `runs` side by side for at most `seconds`, score them, and write their records."""
    deadline = time.monotonic() + seconds
    folders = {options: KIT / "runs" / slug(options) for options in runs}
    processes = []
    for options, folder in folders.items():
        words = [*shlex.split(options), "--data-root", str(data_root), "--out", str(folder)]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "train.txt").open("a", encoding="utf-8") as log:
            command = [sys.executable, "-m", "crkd_cli", "train", *words]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()
    for process in processes:
        process.wait(60)  # it saves its state
    dice = {}
    for options, folder in folders.items():
        for protocol in ("strict", "paper"):
            dice[f"{folder.name}-{protocol}"] = _score(options, folder, protocol, data_root, out)
    print(json.dumps({"dice": dice}))


def _score(options: str, folder: Path, protocol: str, data_root: Path, out: Path) -> float | str:
    """Evaluate last.pth and write the record; return Dice (%), or why there is none."""
    evaluation = folder / f"evaluation-{protocol}"
    words = ["evaluate", str(folder / "last.pth"), "--protocol", protocol]
    words += ["--data-root", str(data_root), "--out", str(evaluation)]
    command = [sys.executable, "-m", "crkd_cli", *words]
    if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
        return (folder / "train.txt").read_text(encoding="utf-8").strip().rpartition("\n")[2]
    note = "images stored in 256 gray levels" if data_root == KIT / "data" else ""
    record = make_record(evaluation, f"crkd train {options}", note=note)
    write_json(record, out / f"{folder.name}-{protocol}.json")
    return round(100 * record["evaluation"]["scores"]["mean"]["dice"][0], 2)


if __name__ == "__main__":
    main()
