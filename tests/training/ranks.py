"""A process that test_distributed.py starts: writes the gradients of its part of a joint batch.

A single process computes the same from the whole joint batch.
"""

import itertools
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crkd_cli import world
from crkd_cli.augment.policy import ChannelTraits, Policy
from crkd_cli.augment.published import Published
from crkd_cli.augment.strong import Strong
from crkd_cli.config import ModelConfig
from crkd_cli.data.batch import Batch, Labeled, Unlabeled
from crkd_cli.losses.contrast import class_means, contrast, sample
from crkd_cli.methods import METHODS
from crkd_cli.methods.ad_mt import CUTMIX
from crkd_cli.methods.base import Method, Task
from crkd_cli.models.projection import Projection
from crkd_cli.runtime.distributed import data_parallel, process_group

LABELED, UNLABELED, CLASSES = 4, 6, 3
IGNORING = ("supervised", "bcp", "lefed")  # methods that also learn from labels with ignored pixels
MODALITIES = {2: ("gray", "RGB", "MR", "MR CT"), 3: ("gray", "RGB", "MR CT")}


def space(dims: int) -> tuple[int, ...]:
    return (32, 16, 16)[:dims]


def batch(dims: int, unlabeled: int = UNLABELED, ignored: bool = False) -> Batch:
    """This process's part of a joint batch, whose halves are kept by a mask to different shares.

    With `ignored`, most pixels of the first half of the labels are ignored, and few of the others.
    """
    generator = torch.Generator().manual_seed(dims)
    counts = (LABELED, *[unlabeled] * 4)
    image, weak, noise, other, noise_2 = (
        torch.rand(count, 1, *space(dims), generator=generator) for count in counts
    )
    weak[: unlabeled // 2] *= 0.1
    label = torch.randint(CLASSES, (LABELED, *space(dims)), generator=generator)
    label[: LABELED // 2] = label[: LABELED // 2].clamp(max=1)
    if ignored:
        label[: LABELED // 2, 4:] = CLASSES
        label[-1, :2] = CLASSES

    def views(image: Tensor) -> Unlabeled:
        strong = (image + 0.3 * noise, image + 0.3 * noise_2)
        return Unlabeled(world.shard(image), tuple(map(world.shard, strong)))

    labeled = Labeled(world.shard(image), world.shard(label))
    return Batch(labeled, views(weak), views(other))


def without_randomness(name: str, dims: int) -> dict[str, float]:
    """Settings of a method with which no process draws random numbers, and some pixels are kept."""
    confidence = 0.6 if dims == 2 else 0.5
    distilled = dict.fromkeys(("pixel_weight", "feature_weight", "entropy_weight"), 100.0)
    settings: dict[str, dict[str, float]] = {
        "ad_mt": {"confidence": confidence, "pseudo_weight": 100.0},
        "acmt": {"noise": 0.0, "consistency_weight": 100.0},
        "bcp": {"pseudo_weight": 100.0},
        "cps": {"consistency_weight": 100.0},
        "crossmatch": {"confidence": confidence, "weak_dropout": 0.0, "strong_dropout": 0.0},
        "crkd": {
            "confidence": confidence,
            "feature_dropout": 0.0,
            "semantic_weight": 0.0,
            **distilled,
        },
        "lefed": {"feedback_scale": 0.1},
        "mean_teacher": {"noise": 0.0, "consistency_weight": 100.0},
        "mlrpl": {"consistency_weight": 100.0},
        "ua_mt": {"noise": 0.0, "consistency_weight": 100.0},
        "unimatch": {"confidence": confidence, "feature_dropout": 0.0},
    }
    return settings.get(name, {})


def gradients(name: str, dims: int, ignored: bool = False, phase: int = 0) -> dict[str, Tensor]:
    """The gradient of every parameter and the value of every loss.

    Batch norm is in evaluation mode: on CPUs it is not synchronized.
    """
    torch.manual_seed(0)
    task = Task(
        ModelConfig(name="unet", widths=(4, 4, 8, 8, 8)),
        dims,
        channels=1,
        classes=CLASSES,
        steps=10,
        has_ignored=ignored,
    )
    kind = METHODS[name]
    method: Method = kind(task, kind.Params(**without_randomness(name, dims))).eval()
    with torch.no_grad():
        for parameter, value in method.named_parameters():
            if parameter.endswith("output.weight"):
                value *= 30.0  # an untrained network is unsure everywhere
    method.phase = phase
    call = data_parallel(method)
    # BCP pairs every labeled image with an unlabeled one.
    joint = batch(dims, LABELED if name == "bcp" else UNLABELED, ignored)
    for _ in range(kind.updates):
        losses = call(joint, 9)
        losses["total"].backward()
    results = {f"loss {term}": world.all_mean(value.detach()) for term, value in losses.items()}
    for parameter, value in method.named_parameters():
        if value.grad is not None:
            results[parameter] = value.grad
    return results


class Semantic(torch.nn.Module):
    """CRKD's semantic term for given random numbers, with features from one layer."""

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
        """rows [B, *S, 4]; order, confidence, pseudo [B, *S]; `number` samples, `count` classes."""
        features = self.student(rows).movedim(-1, 1)
        confident = confidence >= class_means(confidence, pseudo, count)[pseudo]
        everywhere = torch.ones_like(confident)
        anchors = sample(features, pseudo, everywhere, order, count, number)
        targets = sample(features, pseudo, confident, order, count, number)
        projected = self.projection(torch.cat([anchors.features, targets.features]))
        lengths = [len(anchors.features), len(targets.features)]
        projected_anchors, projected_targets = torch.split(projected, lengths)
        return contrast(projected_anchors, projected_targets, anchors, targets, 0.5)


def semantic(dims: int, absent: int, number: int) -> dict[str, Tensor]:
    """Gradients of `Semantic` with `absent` classes that occur nowhere.

    The samples of those classes are arbitrary, so batch norm, in evaluation mode, must not use
    them.
    """
    generator = torch.Generator().manual_seed(dims)
    shape = (LABELED, *(6, 5, 4)[:dims])
    rows = torch.rand(*shape, 4, generator=generator)
    order, confidence = torch.rand(2, *shape, generator=generator)
    pseudo = torch.randint(CLASSES, shape, generator=generator)
    pseudo[: LABELED // 2] = pseudo[: LABELED // 2].clamp(min=1)  # class 0 only in one half
    torch.manual_seed(0)
    module = Semantic().train(not absent)
    call = data_parallel(module)  # type: ignore[arg-type]
    inputs = map(world.shard, (rows, order, confidence, pseudo))
    loss = call(*inputs, CLASSES + absent, number)
    loss.backward()
    by_name = {name: value.grad for name, value in module.named_parameters()}
    return {**by_name, "loss": loss.detach()}


def augmented(policy_class: type[Policy], modality: str, dims: int) -> dict[str, Tensor]:
    """This process's part of a joint batch after weak and strong augmentation, and its labels."""
    generator = torch.Generator().manual_seed(dims)
    modalities = modality.split()
    channels, count = 3 if modality == "RGB" else len(modalities), 12
    images = torch.rand(count, channels, *[32] * dims, generator=generator)
    labels = torch.randint(4, (count, *[32] * dims), generator=generator)
    traits = [ChannelTraits(name, bounded=modality in ("gray", "RGB")) for name in modalities]
    policy = policy_class(traits, (32,) * dims, (0, 1), tuple(range(dims)), label_values=4)
    labeled, label = policy.labeled(world.shard(images), world.shard(labels), generator)
    weak = policy.weak(world.shard(images), generator)
    strong = policy.strong(weak, generator)
    return {"labeled": labeled, "label": label, "weak": weak, "strong": strong}


def main(folder: Path) -> None:
    results: dict[str, Any] = {}
    for dims in (2, 3):
        for name in METHODS.names():
            results[f"{name} {dims}D"] = gradients(name, dims)
        results[f"cutmix {dims}D"] = gradients("ad_mt", dims, phase=CUTMIX)
        for absent, number in itertools.product((0, 1), (12, 1000)):
            results[f"semantic {dims}D {absent} {number}"] = semantic(dims, absent, number)
        for modality in MODALITIES[dims]:
            for policy in (Published, Strong):
                name = f"{policy.__name__} {modality} {dims}D"
                results[f"batch {name}"] = augmented(policy, modality, dims)
    for name in IGNORING:
        results[f"ignoring {name} 2D"] = gradients(name, 2, ignored=True)
    results["gathered"] = world.gather_results([*world.strided_shard(range(7))])
    torch.save(results, folder / f"{world.size()}-{world.rank()}.pt")


if __name__ == "__main__":
    with process_group() if "WORLD_SIZE" in os.environ else nullcontext():
        main(Path(sys.argv[1]))
