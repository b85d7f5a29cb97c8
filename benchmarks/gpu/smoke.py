"""The first look at a device: the tests that need one, then every method's step in bfloat16 beside float32."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crkd_cli.config import Config, load_config
from crkd_cli.data.batch import Batch, Labeled, Unlabeled
from crkd_cli.data.store import DatasetSpec
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method
from crkd_cli.models.blocks import Dropout
from crkd_cli.models.networks.base import Decoder
from crkd_cli.paths import packaged_folder
from crkd_cli.runtime.build import build_method
from crkd_cli.runtime.device import channels_last, describe, pick_device, pick_precision
from crkd_cli.training.optimizer import GuardedOptimizer

CHECKOUT = Path(__file__).parents[2]
DATA = {
    "acdc": ("background", "RV", "Myo", "LV"),
    "la": ("background", "LA"),
}  # a 2D and a 3D setting
SMALL = {
    "acdc": "data.frame={resize: [64, 64]}",
    "la": "data.frame={patch: [48, 16, 16]}",
}  # where there is no GPU
NEAR = 0.02  # how far apart the two losses may be, as a share
SURE = 10.0  # untrained logits grow by this: as they are, a few pixels pass a method's threshold, and rounding says which


def run() -> dict[str, Any]:
    """What the tests said, and a row for every method in 2D and in 3D; `done` if all is well."""
    device = pick_device()
    passed, said = gpu_tests() if device.type == "cuda" else (True, "not run: no GPU")
    rows = []
    for dataset, name in product(DATA, METHODS.names()):
        try:
            rows.append(row(dataset, name, device))
        except RuntimeError as error:  # short of memory, or an operation that the device lacks: the others are worth having
            rows.append({"data": dataset, "method": name, "failed": str(error).partition("\n")[0]})
        print(json.dumps(rows[-1]), file=sys.stderr)
    return {
        "device": describe(device, pick_precision("auto", device)),
        "tests": said,
        "rows": rows,
        "done": passed and all(one.get("difference", 1.0) <= NEAR for one in rows),
    }


def gpu_tests() -> tuple[bool, str]:
    """Whether the tests marked gpu pass, and pytest's last line. Only their files are read: others need more packages."""
    files = [
        str(file)
        for file in (CHECKOUT / "tests").rglob("test_*.py")
        if "mark.gpu" in file.read_text(encoding="utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    pytest = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=False)
    print(pytest.stdout, file=sys.stderr)
    return pytest.returncode == 0, pytest.stdout.strip().rpartition("\n")[2]


def row(dataset: str, name: str, device: torch.device) -> dict[str, Any]:
    """One update of method `name`, sure of itself and without dropout, of the published size, late in a run: all terms count."""
    sets = [f"method={name}", *([] if device.type == "cuda" else [SMALL[dataset]])]
    config = load_config(packaged_folder("configs") / f"{dataset}.yaml", sets)
    losses = {
        precision: step(config, dataset, device, precision)
        for precision in (torch.float32, torch.bfloat16)
    }
    exact, short = (losses[precision][0] for precision in (torch.float32, torch.bfloat16))
    difference = abs(short - exact) / abs(exact)
    return {
        "data": dataset,
        "frame": list(config.data.frame.size),
        "method": name,
        "fp32": round(exact, 5),
        "bf16": round(short, 5),
        "difference": round(difference, 5),
        "peak_gib": losses[torch.bfloat16][1],
    }


def step(
    config: Config, dataset: str, device: torch.device, precision: torch.dtype
) -> tuple[float, float | None]:
    """The total loss of one update from the seed's weights, and the GPU's peak memory in GiB."""
    spec = DatasetSpec(
        name=dataset,
        source=dataset,
        classes=DATA[dataset],
        channels=1,
        modality="mr",
        dims=3,
        intensity="minmax",
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    method = build_method(config, spec).to(device).train()
    with torch.no_grad():
        for layer in method.modules():
            if isinstance(layer, Dropout):  # the GPU draws other elements in another precision
                layer.p = 0.0
            if isinstance(layer, Decoder):
                for parameter in layer.output.parameters():
                    parameter *= SURE
    optimizer = GuardedOptimizer(method, config.train)
    batch = draw(config, len(spec.classes), METHODS[config.method], device)
    late = int(0.8 * config.train.steps)
    torch.manual_seed(config.train.seed)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        losses = method.losses(batch, late)
    torch.autograd.backward(losses["total"])
    optimizer.step(losses["total"], config.train.lr)
    method.after_step(late)
    return float(losses["total"].detach()), torch.cuda.max_memory_allocated(
        device
    ) / 2**30 if device.type == "cuda" else None


def draw(config: Config, classes: int, kind: type[Method], device: torch.device) -> Batch:
    """Noise with a bright box that is labeled, for a method of `kind`: the same for the same configuration."""
    generator = torch.Generator().manual_seed(config.train.seed)
    size = config.data.frame.size

    def images(number: int) -> tuple[Tensor, Tensor]:
        label = torch.zeros(number, *size, dtype=torch.long)
        for k in range(1, classes):
            label[(slice(None), *(slice(k * side // 8, (k + 4) * side // 8) for side in size))] = k
        image = (
            label.unsqueeze(1) / classes + 0.1 * torch.rand(number, 1, *size, generator=generator)
        ).to(device)
        return image.contiguous(memory_format=channels_last(len(size))), label.to(device)

    def views() -> Unlabeled:
        weak = images(config.data.unlabeled_batch_size)[0]
        noise = (
            0.1 * torch.rand(weak.shape, generator=generator).to(device)
            for _ in range(kind.strong_views)
        )
        return Unlabeled(weak, tuple(weak + one for one in noise))

    return Batch(
        Labeled(*images(config.data.labeled_batch_size)),
        *[views() for _ in range(kind.unlabeled_streams)],
    )
