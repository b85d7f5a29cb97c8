"""One process of those that test_distributed.py starts: gradients and batches of its part of a joint batch, into a file.

Started alone it computes the same from the whole joint batch.
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crkd_cli import world
from crkd_cli.augment.policy import Policy
from crkd_cli.config import ModelConfig
from crkd_cli.data.batch import Batch, Labeled, Unlabeled
from crkd_cli.losses.contrast import class_means, contrast, sample
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method, Task
from crkd_cli.models.projection import Projection
from crkd_cli.runtime.distributed import data_parallel, process_group

LABELED, UNLABELED, CLASSES = 4, 6, 3


def space(dims: int) -> tuple[int, ...]:
    return (32, 16, 16)[:dims]


def batch(dims: int, unlabeled: int = UNLABELED) -> Batch:
    """This process's part of one joint batch; its halves differ in how much of them a mask keeps."""
    generator = torch.Generator().manual_seed(dims)
    counts = (LABELED, *[unlabeled] * 4)
    image, weak, noise, other, noise_2 = (
        torch.rand(count, 1, *space(dims), generator=generator) for count in counts
    )
    weak[: unlabeled // 2] *= 0.1
    label = torch.randint(CLASSES, (LABELED, *space(dims)), generator=generator)
    label[: LABELED // 2] = label[: LABELED // 2].clamp(max=1)
    part = world.shard

    def views(image: Tensor) -> Unlabeled:
        return Unlabeled(part(image), (part(image + 0.3 * noise), part(image + 0.3 * noise_2)))

    return Batch(Labeled(part(image), part(label)), views(weak), views(other))


def without_chance(name: str, dims: int) -> dict[str, float]:
    """Settings of a method under which nothing is drawn for a process alone, and some pixels are kept and some are not."""
    sure = 0.6 if dims == 2 else 0.5
    distilled = dict.fromkeys(("pixel_weight", "feature_weight", "entropy_weight"), 100.0)
    settings: dict[str, dict[str, float]] = {
        "acmt": {"noise": 0.0, "consistency_weight": 100.0},
        "bcp": {"pseudo_weight": 100.0},
        "cps": {"consistency_weight": 100.0},
        "crossmatch": {"confidence": sure, "weak_dropout": 0.0, "strong_dropout": 0.0},
        "crkd": {"confidence": sure, "feature_dropout": 0.0, "semantic_weight": 0.0, **distilled},
        "lefed": {"feedback_scale": 0.1},
        "mean_teacher": {"noise": 0.0, "consistency_weight": 100.0},
        "mlrpl": {"consistency_weight": 100.0},
        "ua_mt": {"noise": 0.0, "consistency_weight": 100.0},
        "unimatch": {"confidence": sure, "feature_dropout": 0.0},
    }
    return settings.get(name, {})


def gradients(name: str, dims: int) -> dict[str, Tensor]:
    """Of every parameter and the value of every loss. Batch norm in evaluation mode: on CPUs it is each process's own."""
    torch.manual_seed(0)
    task = Task(
        ModelConfig(name="unet", widths=(4, 4, 8, 8, 8)),
        dims,
        channels=1,
        classes=CLASSES,
        steps=10,
    )
    kind = METHODS[name]
    method: Method = kind(task, kind.Params(**without_chance(name, dims))).eval()
    with torch.no_grad():
        for parameter, value in method.named_parameters():
            if parameter.endswith("output.weight"):
                value *= 30.0  # an untrained network is unsure everywhere
    call = data_parallel(method)
    joint = batch(
        dims, LABELED if name == "bcp" else UNLABELED
    )  # pairs a labeled image with an unlabeled one
    for _ in range(kind.updates):
        losses = call(joint, 9)
        losses["total"].backward()
    found = {
        parameter: value.grad
        for parameter, value in method.named_parameters()
        if value.grad is not None
    }
    return {
        **found,
        **{f"loss {term}": world.all_mean(value.detach()) for term, value in losses.items()},
    }


class Semantic(torch.nn.Module):
    """CSD over given random numbers, with the features from one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.student = torch.nn.Linear(4, 5)
        self.projection = Projection(5, 8)

    def forward(
        self,
        rows: Tensor,
        order: Tensor,
        confidence: Tensor,
        pseudo: Tensor,
        count: int,
        number: int,
    ) -> Tensor:
        """rows [B, *S, 4]; order, confidence and pseudo [B, *S]; `number` samples of `count` classes."""
        features = self.student(rows).movedim(-1, 1)
        sure = confidence >= class_means(confidence, pseudo, count)[pseudo]
        one = sample(features, pseudo, torch.ones_like(sure), order, count, number)
        two = sample(features, pseudo, sure, order, count, number)
        projected = torch.split(
            self.projection(torch.cat([one.features, two.features])),
            [len(one.features), len(two.features)],
        )
        return contrast(projected[0], projected[1], one, two, 0.5)


def semantic(dims: int, absent: int, number: int) -> dict[str, Tensor]:
    """Gradients where `absent` classes are nowhere. What stands for those is no one's choice, so batch norm may not see it."""
    generator = torch.Generator().manual_seed(dims)
    shape = (LABELED, *(6, 5, 4)[:dims])
    rows = torch.rand(*shape, 4, generator=generator)
    order, confidence = torch.rand(2, *shape, generator=generator)
    pseudo = torch.randint(CLASSES, shape, generator=generator)
    pseudo[: LABELED // 2] = pseudo[: LABELED // 2].clamp(min=1)  # class 0 is in one half alone
    torch.manual_seed(0)
    module = Semantic().train(not absent)
    call = data_parallel(module)  # type: ignore[arg-type]
    loss = call(
        *(world.shard(t) for t in (rows, order, confidence, pseudo)), CLASSES + absent, number
    )
    loss.backward()
    return {
        **{name: value.grad for name, value in module.named_parameters()},
        "loss": loss.detach(),
    }


def augmented(modality: str, dims: int) -> dict[str, Tensor]:
    """The part of a joint batch that the weak and the strong augmentation make, and its labels."""
    generator = torch.Generator().manual_seed(dims)
    channels, count = 3 if modality == "rgb" else 1, 12
    images = torch.rand(count, channels, *[32] * dims, generator=generator)
    labels = torch.randint(4, (count, *[32] * dims), generator=generator)
    policy = Policy(modality, bounded=modality != "mr", dims=dims, plane=(0, 1))
    weak, label = policy.weak(world.shard(images), world.shard(labels), generator)
    assert label is not None
    return {"weak": weak, "label": label, "strong": policy.strong(weak, generator)}


def main(folder: Path) -> None:
    found: dict[str, Any] = {}
    for dims in (2, 3):
        found |= {f"{name} {dims}D": gradients(name, dims) for name in METHODS.names()}
        found |= {
            f"semantic {dims}D {a} {n}": semantic(dims, a, n) for a in (0, 1) for n in (12, 1000)
        }
        found |= {
            f"batch {modality} {dims}D": augmented(modality, dims)
            for modality in ("gray", "rgb", "mr")[: 5 - dims]
        }
    found["collected"] = world.gather_results([*world.strided_shard(range(7))])
    torch.save(found, folder / f"{world.size()}-{world.rank()}.pt")


if __name__ == "__main__":
    with process_group() if "WORLD_SIZE" in os.environ else nullcontext():
        main(Path(sys.argv[1]))
