"""Whether speed changes the answer: one trained LA network over every test scan, the published way and by crkd.

python -m benchmarks.labels CHECKPOINT [--data-root DIR] [--limit N] [--command "crkd train …"]

The published way: fp32, one window after the other, of the published size at the published stride. crkd at the same windows in
its own precision, and crkd as it is by default: half a patch of stride, Gaussian weights. All are scored against the truth.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks.published import window_probabilities
from benchmarks.run import facts
from benchmarks.speed.cases import agreement
from crkd_cli.config import Config, Frame
from crkd_cli.config import load_config
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError
from crkd_cli.inference.inferer import Inferer
from crkd_cli.paths import atomic_write, data_root, packaged_folder
from crkd_cli.runtime.build import load_predictor
from crkd_cli.runtime.checkpoint import Checkpoint, load_checkpoint
from crkd_cli.runtime.device import pick_precision

CPU = torch.device("cpu")
OUT = Path(__file__).parent / "results" / "labels-la.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data-root", type=Path, help="holds prepared/; default: as crkd's")
    parser.add_argument("--limit", type=int, help="of the test scans")
    parser.add_argument("--command", default="", help="what trained the network, for the record")
    parser.add_argument("--out", type=Path, default=OUT, help="default: %(default)s")
    given = parser.parse_args()
    try:
        checkpoint = load_checkpoint(given.checkpoint)
        store = Store(data_root(given.data_root) / "prepared" / checkpoint.spec.name)
        published: Config = load_config(packaged_folder("configs") / "la.yaml", [])
        record = measure(checkpoint, store, published.data.frame, given.limit)
    except CrkdError as error:
        sys.exit(f"error: {error}")
    with atomic_write(given.out) as temporary:
        temporary.write_text(
            json.dumps({"trained_by": given.command, **record}, indent=1) + "\n", encoding="utf-8"
        )
    print(f"written: {given.out}", file=sys.stderr)


def measure(
    checkpoint: Checkpoint, store: Store, frame: Frame, limit: int | None = None
) -> dict[str, Any]:
    """Dice of the label maps with one another and with the truth, for every test scan, in windows of `frame`."""
    if checkpoint.config.data.frame.patch is None:
        raise CrkdError(
            f"{checkpoint.path} was not trained on windows; give a network trained on LA"
        )
    patch, stride = frame.size, frame.stride or [side // 2 for side in frame.size]
    network = load_predictor(checkpoint, CPU)
    precision = pick_precision("auto", CPU)
    fast = Inferer(network, frame, checkpoint.spec, CPU, precision, "paper")
    usual = Inferer(network, frame, checkpoint.spec, CPU, precision, "strict")
    cases = []
    for name in checkpoint.split.cases(store, "test")[:limit]:
        begin = time.perf_counter()
        image, truth = np.array(store.image(name), np.float32), np.array(store.label(name))
        with torch.inference_mode():
            p = window_probabilities(network, image[0], patch, stride, len(checkpoint.spec.classes))
        plain, same, default = p.argmax(0).astype(np.uint8), fast(image), usual(image)
        cases.append(
            {
                "case": name,
                "shape": truth.shape,
                "same": agreement(same, plain),
                "plain_dice": agreement(plain, truth),
                "same_dice": agreement(same, truth),
                "default_dice": agreement(default, truth),
            }
        )
        print(f"{time.perf_counter() - begin:5.0f} s  {cases[-1]}", file=sys.stderr, flush=True)
    means = {
        key: mean(case[key] for case in cases)
        for key in ("same", "plain_dice", "same_dice", "default_dice")
    }
    return {**facts(), "step": checkpoint.step, "mean": means, "cases": cases}


if __name__ == "__main__":
    main()
