"""Which of CRKD's terms helps where a run stands: how far the gradient of each points down the loss on validation patients.

python -m benchmarks.gradients runs/acdc-crkd-3/last.pth [data root]

Prints for every term the mean norm of its gradient and the cosine between the mean of its gradients, over 24 training batches,
and the gradient of ½ (cross entropy + Dice) on the validation patients. Above 0: a step down the term is one down that loss.
"""

import json
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import fmean

import msgspec
import torch
from torch import Tensor

from crkd_cli.data.store import Store
from crkd_cli.losses.dice import dice_loss
from crkd_cli.methods.base import forward_concat, require_unlabeled, supervised_loss
from crkd_cli.models.blocks import Dropout
from crkd_cli.runtime.build import load_method
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.training.batches import build_loader

CPU = torch.device("cpu")
BATCHES = 24
TERMS = ("labeled", "pseudo", "pixel", "feature", "semantic", "entropy")


def main() -> None:
    checkpoint = load_checkpoint(Path(sys.argv[1]))
    config, split = checkpoint.config, checkpoint.split
    store = Store(
        Path(sys.argv[2] if len(sys.argv) > 2 else "data") / "prepared" / config.data.name
    )
    method = load_method(checkpoint).train()
    data = build_loader(config, store, split, type(method), CPU)
    watched = msgspec.structs.replace(
        split, train=(*split.train, *split.val), labeled=split.val, val=()
    )
    val = build_loader(config, store, watched, type(method), CPU)
    parameters = [parameter for parameter in method.student.parameters() if parameter.requires_grad]

    def gradient(loss: Tensor) -> Tensor:
        found = torch.autograd.grad(
            loss, parameters, retain_graph=True, materialize_grads=True
        )  # CFKD ends before the output
        return torch.cat([one.flatten() for one in found])

    dropouts = {
        module: module.p for module in method.student.modules() if isinstance(module, Dropout)
    }
    for module in dropouts:
        module.p = 0.0
    down: list[Tensor] = []
    for number in range(BATCHES):
        labeled, weak = (
            val.batch(val.read(number), number).labeled,
            require_unlabeled(data.batch(data.read(number), number).unlabeled).weak,
        )
        log_p, _ = forward_concat(
            method.student, labeled.image, weak
        )  # normalized with unlabeled images, as in training
        down.append(
            gradient(supervised_loss(log_p, labeled.label, dice=partial(dice_loss, classes="all")))
        )
    target = torch.stack(down).mean(0)
    for module, p in dropouts.items():
        module.p = p

    gradients: dict[str, list[Tensor]] = defaultdict(list)
    for step in range(checkpoint.step, checkpoint.step + BATCHES):
        torch.manual_seed(step)
        losses = method.losses(data.batch(data.read(step), step), step)
        for term in TERMS:
            gradients[term].append(gradient(losses[term]))
    rows = {}
    for term, several in gradients.items():
        cosine = torch.cosine_similarity(torch.stack(several).mean(0), target, dim=0)
        rows[term] = {
            "norm": round(fmean(float(one.norm()) for one in several), 3),
            "cosine": round(float(cosine), 2),
        }
    print(json.dumps({"seed": config.train.seed, "step": checkpoint.step, **rows}))


if __name__ == "__main__":
    main()
