"""Rows of whole cases: inference over one scan, the scores of its labels, and how both grow; MONAI beside them."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published import scores, window_probabilities
from benchmarks.speed.inputs import Inputs, normalized, resampled
from benchmarks.speed.row import Row, alone, timed
from benchmarks.speed.timing import Patience, Work, in_turn
from crkd_cli.config import Frame
from crkd_cli.data.synthetic import atrium
from crkd_cli.inference.inferer import Inferer, Protocol
from crkd_cli.metrics.overlap import confusion, dice, jaccard
from crkd_cli.metrics.surface import Surface, surface
from crkd_cli.runtime.device import pick_precision
from crkd_cli.training.loop import train

CPU = torch.device("cpu")
Label = NDArray[np.uint8]
Mask = NDArray[np.bool_]
ABSENT = "MONAI is not installed"


@cache
def trained(inputs: Inputs) -> nn.Module:
    """A V-Net after a few supervised steps on small crops: its answer is an atrium and not noise."""
    run = inputs.run(
        "la", inputs.sizes.training_patch, method="supervised", steps=inputs.sizes.training_steps
    )
    train(run, lambda step, values: None)
    return run.method.predictor.eval()


def inferer(inputs: Inputs, protocol: Protocol) -> Inferer:
    frame = Frame(patch=inputs.sizes.patch, stride=inputs.sizes.stride)
    return Inferer(
        trained(inputs), frame, inputs.store("la").spec, CPU, pick_precision("auto", CPU), protocol
    )


def first_test_case(inputs: Inputs) -> tuple[NDArray[np.float32], Label]:
    """Image and label [*S]."""
    store = inputs.store("la")
    name = inputs.split("la").cases(store, "test")[0]
    return np.array(store.image(name)[0], np.float32), np.array(store.label(name))


def case(inputs: Inputs) -> Iterator[Row]:
    """One scan: the published loop, crkd at the same windows, crkd as it is by default, and MONAI at the default's windows."""
    image, _ = first_test_case(inputs)
    network, patch, stride = trained(inputs), inputs.sizes.patch, inputs.sizes.stride
    maps: dict[str, Label] = {}

    def published() -> None:
        maps["baseline"] = (
            window_probabilities(network, image, patch, stride, 2).argmax(0).astype(np.uint8)
        )

    def ours(protocol: Protocol) -> None:
        maps[protocol] = inferer(inputs, protocol)(image[None])

    works: dict[str, Work] = {
        "baseline": published,
        "paper": lambda: ours("paper"),
        "strict": lambda: ours("strict"),
    }
    if peer := monai_windows(inputs, image, maps):
        works["monai"] = peer
    window_probabilities(
        network, image[tuple(slice(side) for side in patch)], patch, stride, 2
    )  # warms up: one window
    ours("strict")
    taken = in_turn(works, Patience(0.0, least=3), warm_up=False)
    what = f"one LA case {'×'.join(map(str, image.shape))}"
    row = Row(
        "case",
        "target",
        f"{what}, published windows (stride {', '.join(map(str, stride))})",
        target=4.0,
    )
    row.detail |= {
        "dice": agreement(maps["paper"], maps["baseline"]),
        "flops": operations(lambda: ours("paper")),
    }
    row.note = f"Dice of the two label maps {row.detail['dice']:.4f}"
    if row.detail["dice"] < 0.999:
        row.note += ", below 0.999: NOT the same labels"
    yield timed(row, taken["baseline"], taken["paper"])
    what_strict = (
        f"{what}, crkd's default windows (half a patch, Gaussian) against the published ones"
    )
    row = Row("case-strict", "target", what_strict, target=20.0)
    row.detail |= {
        "dice": agreement(maps["strict"], maps["baseline"]),
        "flops": operations(lambda: ours("strict")),
    }
    row.note = (
        f"not the same work: fewer windows; Dice of the two label maps {row.detail['dice']:.4f}"
    )
    yield timed(row, taken["baseline"], taken["strict"])
    row = Row(
        "peer-windows",
        "peer",
        f"{what}, windows at half a patch, Gaussian: MONAI's sliding_window_inference, fp32",
    )
    if "monai" in taken:
        row.note = f"Dice of the two label maps {agreement(maps['strict'], maps['monai']):.4f}"
        timed(row, taken["monai"], taken["strict"])
    else:
        row.note = ABSENT
    yield row


def operations(work: Work) -> int:
    """Floating-point operations of its convolutions and products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def agreement(first: Label, second: Label) -> float:
    return float(dice(confusion(first, second, 2))[1])


def monai_windows(
    inputs: Inputs, image: NDArray[np.float32], maps: dict[str, Label]
) -> Work | None:
    """MONAI's inference at crkd's default windows; None where MONAI is not installed."""
    try:
        from monai.inferers import sliding_window_inference
    except ImportError:
        return None
    network = trained(inputs)

    @torch.inference_mode()
    def run() -> None:
        x = torch.from_numpy(image)[None, None]
        p = sliding_window_inference(
            x, inputs.sizes.patch, 2, lambda x: network(x).softmax(1), overlap=0.5, mode="gaussian"
        )
        maps["monai"] = p.argmax(1)[0].numpy().astype(np.uint8)

    return run


def overlapping(shape: tuple[int, ...]) -> tuple[Mask, Mask]:
    """The first synthetic atrium at `shape` moved by two voxels along every axis, with a dent, as prediction; itself as truth."""
    truth = resampled(atrium(0), shape)[1] == 1
    prediction = np.roll(truth, (2,) * truth.ndim, range(truth.ndim))
    prediction[tuple(slice(side // 2, side // 2 + side // 12) for side in shape)] = False
    return prediction, truth


def all_scores(prediction: Mask, truth: Mask) -> tuple[float, float, Surface]:
    """Everything that crkd reports of a class: Dice, Jaccard, and the four surface scores."""
    voxels = confusion(prediction.astype(np.uint8), truth.astype(np.uint8), 2)
    return (
        float(dice(voxels)[1]),
        float(jaccard(voxels)[1]),
        surface(prediction, truth, (1.0,) * truth.ndim, 2.0),
    )


def metrics(inputs: Inputs) -> Iterator[Row]:
    shape = first_test_case(inputs)[1].shape
    pair = overlapping(shape)
    works: dict[str, Work] = {"baseline": lambda: scores(*pair), "crkd": lambda: all_scores(*pair)}
    if peer := monai_distances(*pair):
        works["monai"] = peer
    taken = in_turn(works, Patience(inputs.sizes.seconds / 3, least=3))
    what = f"scores of one LA case {'×'.join(map(str, shape))}"
    note = "baseline: medpy's dc, jc, hd95, asd; crkd: these four, and assd and nsd"
    yield timed(
        Row("metrics", "target", what, target=8.0, note=note), taken["baseline"], taken["crkd"]
    )
    row = Row(
        "peer-metrics",
        "peer",
        f"{what}: MONAI's compute_hausdorff_distance, compute_average_surface_distance",
    )
    if "monai" in taken:
        row.note = "MONAI: hd95 and the symmetric mean; crkd: all six scores"
        timed(row, taken["monai"], taken["crkd"])
    else:
        row.note = ABSENT
    yield row


def monai_distances(prediction: Mask, truth: Mask) -> Work | None:
    """MONAI's two surface scores; None where MONAI is not installed."""
    try:
        from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
    except ImportError:
        return None
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]

    def run() -> None:
        compute_hausdorff_distance(*pair, include_background=True, percentile=95)
        compute_average_surface_distance(*pair, include_background=True, symmetric=True)

    return run


def grow_metrics(inputs: Inputs) -> Iterator[Row]:
    """medpy is left out where it would take minutes."""
    for side in inputs.sizes.cubes:
        pair = overlapping((side,) * 3)
        works: dict[str, Work] = {"crkd": lambda pair=pair: all_scores(*pair)}
        if side in inputs.sizes.slow_cubes:
            works["baseline"] = lambda pair=pair: scores(*pair)
        taken = in_turn(works, Patience(0.0, least=1), warm_up=False)
        row = Row("grow-metrics", "growth", f"scores of one case of {side}³ voxels", size=side)
        yield (
            timed(row, taken["baseline"], taken["crkd"])
            if "baseline" in taken
            else alone(row, taken["crkd"])
        )


def grow_case(inputs: Inputs) -> Iterator[Row]:
    """crkd alone: the published stride gives so many windows that the larger cases would take an hour."""
    for side in inputs.sizes.case_cubes:
        image = normalized(resampled(atrium(0), (side,) * 3)[0], inputs.store("la").spec)
        works: dict[str, Work] = {
            "crkd": lambda image=image: inferer(inputs, "strict")(image[None])
        }
        sample = in_turn(works, Patience(0.0, least=1), warm_up=False)["crkd"]
        yield alone(
            Row(
                "grow-case",
                "growth",
                f"crkd's default inference over one case of {side}³ voxels",
                size=side,
            ),
            sample,
        )
