"""What the statistics of batch norm are worth: validation Dice of a run's networks with the statistics that they gathered in
training, and with those that `train.predictor: renewed` takes from unlabelled training images.

python -m benchmarks.statistics runs/acdc-crkd-3/last.pth [data root]
"""

import copy
import json
import sys
from pathlib import Path

import torch
from torch import nn

from crkd_cli.data.case import Store
from crkd_cli.engine.assemble import build_data, load_method
from crkd_cli.engine.checkpoint import load
from crkd_cli.engine.evaluate import validate
from crkd_cli.engine.infer import Inferer
from crkd_cli.engine.renew import Renewal
from crkd_cli.methods import METHODS
from crkd_cli.models.ema import Ema

CPU = torch.device("cpu")


def main() -> None:
    checkpoint = load(Path(sys.argv[1]))
    config, spec = checkpoint.config, checkpoint.spec
    store = Store(Path(sys.argv[2] if len(sys.argv) > 2 else "data") / "prepared" / config.data.name)
    # As a method that reads unlabelled images has them, whatever this one reads.
    data = build_data(config, store, checkpoint.split, METHODS["crkd"], CPU)
    renew = Renewal(data, torch.float32)

    def dice(network: nn.Module) -> float:
        inferer = Inferer(network.eval(), config.data.frame, spec, CPU, torch.float32)
        return round(100 * validate(inferer, store, checkpoint.split.cases(store, "val"))["dice"], 1)

    method = load_method(checkpoint)
    averages = {name: module.network for name, module in method.named_children() if isinstance(module, Ema)}
    found = {}
    for name, network in {"student": method.student, **averages}.items():
        found[f"{name}, as trained"] = dice(network)
        renew(renewed := copy.deepcopy(network))
        found[f"{name}, renewed"] = dice(renewed)
    print(json.dumps({"method": config.method, "seed": config.train.seed, "step": checkpoint.step, **found}))


if __name__ == "__main__":
    main()
