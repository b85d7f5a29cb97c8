"""LeFeD: two passes over a batch worked out layer by layer, which loss reaches which weights, the feedback's life."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from crkd_cli.config import ModelConfig
from crkd_cli.data.batch import Batch
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import require_unlabeled
from crkd_cli.methods.lefed import LeFeD
from crkd_cli.models.networks.base import Decoder
from tests.methods.test_contract import batch, calm, task


def build(dims: int, network: str = "unet", **params: object) -> LeFeD:
    torch.manual_seed(0)
    own = replace(task(dims), model=ModelConfig(name=network, widths=(4, 4, 8, 8, 8)))
    method = METHODS["lefed"](own, LeFeD.Params(**params))
    assert isinstance(method, LeFeD)
    calm(method)
    return method.train()


def climb(decoder: Decoder, levels: Sequence[Tensor], network: str) -> tuple[Tensor, list[Tensor]]:
    """Logits, and stages from the full resolution down."""
    x, stages = levels[4], [levels[4]]
    for number in range(4):
        upsampled, skip = decoder.upsample[number](x), levels[3 - number]
        stages.insert(0, upsampled)
        x = decoder.fuse[number](
            torch.cat([skip, upsampled], dim=1) if network == "unet" else upsampled + skip
        )
    return decoder.head(x), stages


def by_hand(
    method: LeFeD, data: Batch, network: str, feedback: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Logits of A and B, those of the side outputs, and both lists of stages, of one pass; draws as in `losses`."""
    levels = method.student.encode(
        torch.cat([data.labeled.image, require_unlabeled(data.unlabeled).weak]), feedback
    )
    z_a, s_a = climb(method.student.decoder, levels, network)
    gated_levels = [x * s.detach().sigmoid() for x, s in zip(levels, s_a, strict=True)]
    gated_levels[4] = levels[4] + gated_levels[4]
    z_b, s_b = climb(method.other, gated_levels, network)
    mode = "bilinear" if data.labeled.image.ndim == 4 else "trilinear"
    sides = []
    for number, (side, stage) in enumerate(zip(method.side, s_a, strict=True)):
        z = side[0](stage)
        for _ in range(number):
            z = functional.interpolate(z, scale_factor=2, mode=mode, align_corners=True)
        sides.append(z)
    return z_a, z_b, sides, s_a, s_b


def dice(z: Tensor, label: Tensor) -> Tensor:
    """1 − (2 Σ p t + 10⁻⁵) / (Σ p² + Σ t² + 10⁻⁵) of classes 1 and 2, averaged, over the labeled images."""
    p, losses = z[: len(label)].double().softmax(1), []
    for k in (1, 2):
        t = (label == k).double()
        losses.append(
            1
            - (2 * (p[:, k] * t).sum() + 1e-5) / (p[:, k].square().sum() + t.square().sum() + 1e-5)
        )
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("network", "params"),
    [
        ("unet", {"feedback_scale": 0.5}),
        ("vnet", {}),
        (
            "unet",
            {
                "feedback_scale": 0.5,
                "feedback_levels": (1, 5),
                "cross_entropy_weight": 0.3,
                "rampup": 0.5,
            },
        ),
    ],
)
def test_two_passes_by_hand(dims: int, network: str, params: dict[str, object]) -> None:
    method, data, step = build(dims, network, **params), batch(dims), 3
    label, scale, which = (
        data.labeled.label,
        float(params.get("feedback_scale", 1e-3)),
        params.get("feedback_levels", (1, 2, 3, 4, 5)),
    )
    feedback: Sequence[Tensor | None] = [None] * 5
    for seed in (5, 6):
        torch.manual_seed(seed)
        losses = method.losses(data, step)
        torch.manual_seed(seed)
        z_a, z_b, sides, s_a, s_b = by_hand(method, data, network, feedback)
        labeled = dice(z_a, label) + dice(z_b, label)
        labeled += float(params.get("cross_entropy_weight", 0.0)) * sum(
            functional.cross_entropy(z[:3], label) for z in (z_a, z_b)
        )
        deep = sum(
            weight * dice(z, label)
            for weight, z in zip((0.8, 0.6, 0.4, 0.2, 0.1), sides, strict=True)
        )
        consistency = (z_a.double().softmax(1) - z_b.double().softmax(1)).square().mean()
        assert losses["labeled"].item() == pytest.approx(labeled.item(), rel=1e-4)
        assert losses["deep"].item() == pytest.approx(deep.item(), rel=1e-4)
        assert losses["consistency"].item() == pytest.approx(consistency.item(), rel=1e-4)
        weight = math.exp(-5 * (1 - 3 / 5) ** 2) if "rampup" in params else 1.0
        assert losses["total"].item() == pytest.approx(
            (labeled + deep + weight * consistency).item(), rel=1e-4
        )
        feedback = [
            scale * (b - a).detach() if k in which else None
            for k, (a, b) in enumerate(zip(s_a, s_b, strict=True), 1)
        ]
        for found, expected in zip(method.feedback, feedback, strict=True):
            assert (found is None) is (expected is None)
            if found is not None:
                assert not found.requires_grad
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * scale)
        torch.testing.assert_close(
            feedback[4], scale * (s_a[4] * s_a[4].sigmoid()).detach(), rtol=1e-3, atol=1e-4 * scale
        )


def names_with_gradient(method: LeFeD) -> set[str]:
    """Encoder, A, B, side: the parts that have a gradient other than 0."""
    parts = {"student.decoder": "A", "student": "encoder", "other": "B", "side": "side"}
    own = {
        name for name, p in method.named_parameters() if p.grad is not None and (p.grad != 0).any()
    }
    return {next(part for prefix, part in parts.items() if name.startswith(prefix)) for name in own}


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
    """The total's gradient for decoder A, in the second pass, is that of A's own terms with B's answer as a constant."""
    method, data = build(dims, feedback_scale=0.5), batch(dims)
    method.losses(data, 0)
    feedback = list(method.feedback)
    method.losses(data, 0)["total"].backward()
    found = [p.grad.clone() for p in method.student.decoder.parameters()]
    method.zero_grad()
    z_a, z_b, sides, *_ = by_hand(method, data, "unet", feedback)
    label = data.labeled.label
    deep = sum(
        weight * dice(z, label) for weight, z in zip((0.8, 0.6, 0.4, 0.2, 0.1), sides, strict=True)
    )
    (
        dice(z_a, label) + deep + (z_a.softmax(1) - z_b.softmax(1).detach()).square().mean()
    ).backward()
    for one, p in zip(found, method.student.decoder.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad, rtol=1e-3, atol=1e-5)


def test_the_feedback_ends_with_its_batch() -> None:
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
    """V-Net of 9.45 million parameters and a decoder: 12.35 million; 1,002 in the side outputs. The bottom drops 0.3."""
    own = replace(task(3, classes=2), model=ModelConfig(name="vnet"))
    method = LeFeD(own, LeFeD.Params())
    side = sum(p.numel() for p in method.side.parameters())
    assert side == 1002
    assert (sum(p.numel() for p in method.parameters()) - side) / 1e6 == pytest.approx(
        12.35, abs=0.005
    )
    assert method.student.bottom_dropout == 0.3
    assert method.predictor is method.student


def test_levels_out_of_range_are_refused() -> None:
    for wrong in ({"feedback_levels": [0]}, {"feedback_levels": [6]}, {"feedback_scale": -1.0}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, LeFeD.Params)
