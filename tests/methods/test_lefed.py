"""LeFeD: two passes over a batch layer by layer, which loss reaches which weights, feedback."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crkd_cli.config import ModelConfig
from crkd_cli.data.batch import Batch
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import require_unlabeled
from crkd_cli.methods.lefed import LeFeD
from crkd_cli.models.networks.base import Decoder
from tests.methods.test_contract import batch, make_deterministic, task

SCALES = (0.8, 0.6, 0.4, 0.2, 0.1)
SOME_LEVELS = {"feedback_levels": (1, 5), "cross_entropy_weight": 0.3, "rampup": 0.5}


def build(dims: int, network: str = "unet", **params: object) -> LeFeD:
    torch.manual_seed(0)
    model = ModelConfig(name=network, widths=(4, 4, 8, 8, 8))
    method = METHODS["lefed"](replace(task(dims), model=model), LeFeD.Params(**params))
    assert isinstance(method, LeFeD)
    make_deterministic(method)
    return method.train()


def decode(decoder: Decoder, levels: Sequence[Tensor], network: str) -> tuple[Tensor, list[Tensor]]:
    """Return logits, and stages with full resolution first."""
    x, stages = levels[4], [levels[4]]
    for number in range(4):
        upsampled, skip = decoder.upsample[number](x), levels[3 - number]
        stages.insert(0, upsampled)
        merged = torch.cat([skip, upsampled], dim=1) if network == "unet" else upsampled + skip
        x = decoder.fuse[number](merged)
    return decoder.head(x), stages


def by_hand(
    method: LeFeD, data: Batch, network: str, feedback: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Compute one pass: logits of A, of B and of the side outputs, and the stages of A and of B.

    Draws the same random numbers as `losses`.
    """
    images = torch.cat([data.labeled.image, require_unlabeled(data.unlabeled).weak])
    levels = method.student.encode(images, feedback)
    z_a, s_a = decode(method.student.decoder, levels, network)
    gated = [x * s.detach().sigmoid() for x, s in zip(levels, s_a, strict=True)]
    gated[4] = levels[4] + gated[4]
    z_b, s_b = decode(method.other, gated, network)
    mode = "bilinear" if data.labeled.image.ndim == 4 else "trilinear"
    sides = []
    for number, (side, stage) in enumerate(zip(method.side, s_a, strict=True)):
        z = side[0](stage)
        for _ in range(number):
            z = F.interpolate(z, scale_factor=2, mode=mode, align_corners=True)
        sides.append(z)
    return z_a, z_b, sides, s_a, s_b


def dice(z: Tensor, label: Tensor) -> Tensor:
    """Average 1 − (2 Σ p t + 10⁻⁵) / (Σ p² + Σ t² + 10⁻⁵) over classes 1 and 2.

    z starts with the logits of the labeled images.
    """
    p, losses = z[: len(label)].double().softmax(1), []
    for k in (1, 2):
        t = (label == k).double()
        overlap, size = (p[:, k] * t).sum(), p[:, k].square().sum() + t.square().sum()
        losses.append(1 - (2 * overlap + 1e-5) / (size + 1e-5))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("network", "params"),
    [
        ("unet", {"feedback_scale": 0.5}),
        ("vnet", {}),
        ("unet", {"feedback_scale": 0.5, **SOME_LEVELS}),
    ],
)
def test_two_passes_by_hand(dims: int, network: str, params: dict[str, object]) -> None:
    method, data, step = build(dims, network, **params), batch(dims), 3
    label, scale = data.labeled.label, float(params.get("feedback_scale", 1e-3))
    levels = params.get("feedback_levels", (1, 2, 3, 4, 5))
    cross_entropy_weight = float(params.get("cross_entropy_weight", 0.0))
    weight = math.exp(-5 * (1 - 3 / 5) ** 2) if "rampup" in params else 1.0
    feedback: Sequence[Tensor | None] = [None] * 5
    for seed in (5, 6):
        torch.manual_seed(seed)
        losses = method.losses(data, step)
        torch.manual_seed(seed)
        z_a, z_b, sides, s_a, s_b = by_hand(method, data, network, feedback)
        labeled = dice(z_a, label) + dice(z_b, label)
        cross_entropy = sum(F.cross_entropy(z[:3], label) for z in (z_a, z_b))
        labeled += cross_entropy_weight * cross_entropy
        deep = sum(w * dice(z, label) for w, z in zip(SCALES, sides, strict=True))
        consistency = (z_a.double().softmax(1) - z_b.double().softmax(1)).square().mean()
        assert losses["labeled"].item() == pytest.approx(labeled.item(), rel=1e-4)
        assert losses["deep"].item() == pytest.approx(deep.item(), rel=1e-4)
        assert losses["consistency"].item() == pytest.approx(consistency.item(), rel=1e-4)
        total = (labeled + deep + weight * consistency).item()
        assert losses["total"].item() == pytest.approx(total, rel=1e-4)
        differences = [scale * (b - a).detach() for a, b in zip(s_a, s_b, strict=True)]
        feedback = [x if level in levels else None for level, x in enumerate(differences, 1)]
        check_feedback(method.feedback, feedback, scale)
        bottom = scale * (s_a[4] * s_a[4].sigmoid()).detach()
        torch.testing.assert_close(feedback[4], bottom, rtol=1e-3, atol=1e-4 * scale)


def check_feedback(
    actual: Sequence[Tensor | None], expected: Sequence[Tensor | None], scale: float
) -> None:
    for x, y in zip(actual, expected, strict=True):
        assert (x is None) is (y is None)
        if x is not None:
            assert not x.requires_grad
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4 * scale)


def names_with_gradient(method: LeFeD) -> set[str]:
    """Name the parts with a gradient other than 0: encoder, A, B, side."""
    parts = {"student.decoder": "A", "student": "encoder", "other": "B", "side": "side"}
    names = set()
    for name, p in method.named_parameters():
        if p.grad is not None and (p.grad != 0).any():
            names.add(next(part for prefix, part in parts.items() if name.startswith(prefix)))
    return names


def test_which_loss_reaches_which_weights(dims: int) -> None:
    method, data = build(dims), batch(dims)
    method.losses(data, 0)["deep"].backward()
    assert names_with_gradient(method) == {"encoder", "A", "side"}
    method.zero_grad()
    stages: list[Tensor] = []
    pyramid = method.student.encode(data.labeled.image)
    method.student.decode(pyramid, stages)
    method.other.head(method.other(method.gates(pyramid, stages))).square().sum().backward()
    assert names_with_gradient(method) == {"encoder", "B"}
    method.zero_grad()
    method.losses(data, 0)["consistency"].backward()
    assert names_with_gradient(method) == {"encoder", "A", "B"}


def test_gates_and_feedback_carry_no_gradient(dims: int) -> None:
    """In the second pass, decoder A gets the gradient of its own terms, with B as a constant."""
    method, data = build(dims, feedback_scale=0.5), batch(dims)
    method.losses(data, 0)
    feedback = list(method.feedback)
    method.losses(data, 0)["total"].backward()
    gradients = [p.grad.clone() for p in method.student.decoder.parameters()]
    method.zero_grad()
    z_a, z_b, sides, *_ = by_hand(method, data, "unet", feedback)
    label = data.labeled.label
    deep = sum(w * dice(z, label) for w, z in zip(SCALES, sides, strict=True))
    consistency = (z_a.softmax(1) - z_b.softmax(1).detach()).square().mean()
    (dice(z_a, label) + deep + consistency).backward()
    for gradient, p in zip(gradients, method.student.decoder.parameters(), strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-3, atol=1e-5)


def test_feedback_ends_with_its_batch() -> None:
    method, data = build(2), batch(2)
    first = method.losses(data, 0)["total"]
    second = method.losses(data, 0)["total"]
    assert first.item() != second.item()
    assert not any("feedback" in name for name in method.state_dict())
    method.after_step(0)
    assert list(method.feedback) == [None] * 5
    assert list(copy.deepcopy(method).feedback) == [None] * 5
    assert method.losses(data, 1)["total"].item() == pytest.approx(first.item(), rel=1e-6)


def test_networks_are_the_published_ones() -> None:
    """A V-Net of 9.45 million parameters with a second decoder has 12.35 million.

    The side outputs have 1,002 more, and the dropout rate of the bottom level is 0.3.
    """
    vnet = replace(task(3, classes=2), model=ModelConfig(name="vnet"))
    method = LeFeD(vnet, LeFeD.Params())
    side = sum(p.numel() for p in method.side.parameters())
    assert side == 1002
    networks = sum(p.numel() for p in method.parameters()) - side
    assert networks / 1e6 == pytest.approx(12.35, abs=0.005)
    assert method.student.bottom_dropout == 0.3
    assert method.predictor is method.student


def test_levels_out_of_range_are_refused() -> None:
    for params in ({"feedback_levels": [0]}, {"feedback_levels": [6]}, {"feedback_scale": -1.0}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(params, LeFeD.Params)
