"""What the statistics of batch norm are worth: validation Dice of a run's networks with the statistics that they gathered in
training, and with those that `train.recalibrate_batch_norm: renewed` takes from unlabeled training images.

python -m benchmarks.statistics runs/acdc-crkd-3/last.pth [data root]
"""

import copy
import json
import sys
from pathlib import Path

import torch
from torch import nn

from crkd_cli.data.store import Store
from crkd_cli.inference.inferer import Inferer
from crkd_cli.methods import METHODS
from crkd_cli.models.ema import Ema
from crkd_cli.runtime.build import load_method
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.training.batch_norm import BatchNormRecalibration
from crkd_cli.training.batches import build_loader
from crkd_cli.training.validator import validation_dice

CPU = torch.device("cpu")


def main() -> None:
    checkpoint = load_checkpoint(Path(sys.argv[1]))
    config, spec = checkpoint.config, checkpoint.spec
    store = Store(
        Path(sys.argv[2] if len(sys.argv) > 2 else "data") / "prepared" / config.data.name
    )
    # As a method that reads unlabeled images has them, whatever this one reads.
    data = build_loader(config, store, checkpoint.split, METHODS["crkd"], CPU)
    renew = BatchNormRecalibration(data, torch.float32)

    def dice(network: nn.Module) -> float:
        inferer = Inferer(network.eval(), config.data.frame, spec, CPU, torch.float32)
        return round(
            100 * validation_dice(inferer, store, checkpoint.split.cases(store, "val"))["dice"], 1
        )

    method = load_method(checkpoint)
    averages = {
        name: module.network for name, module in method.named_children() if isinstance(module, Ema)
    }
    found = {}
    for name, network in {"student": method.student, **averages}.items():
        found[f"{name}, as trained"] = dice(network)
        renew(renewed := copy.deepcopy(network))
        found[f"{name}, renewed"] = dice(renewed)
    print(
        json.dumps(
            {"method": config.method, "seed": config.train.seed, "step": checkpoint.step, **found}
        )
    )


if __name__ == "__main__":
    main()
