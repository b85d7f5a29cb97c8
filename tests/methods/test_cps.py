"""CPS: the cross term by a slow loop, two networks that learn alone and begin differently."""

import math

import pytest
import torch

from crkd_cli.methods import METHODS
from crkd_cli.methods.base import forward_concat, require_unlabeled, supervised_loss
from crkd_cli.methods.cps import Cps
from tests.methods.test_contract import batch, calm, task


def build(dims: int, **params: float) -> Cps:
    torch.manual_seed(0)
    method = METHODS["cps"](task(dims), Cps.Params(**params))
    assert isinstance(method, Cps)
    calm(method)
    return method.train()


def test_terms_by_hand(dims: int) -> None:
    method, data = build(dims, consistency_weight=2.0, rampup=0.5), batch(dims)
    losses = method.losses(data, 3)
    answers = [
        forward_concat(network, data.labeled.image, require_unlabeled(data.unlabeled).weak)
        for network in (method.student, method.other)
    ]
    rows = [log_u.detach().double().movedim(1, -1).reshape(-1, 3).tolist() for _, log_u in answers]
    crossed, agreed = 0.0, 0
    for p, q in zip(*rows, strict=True):
        said, other = p.index(max(p)), q.index(max(q))
        crossed -= p[other] + q[said]  # logarithms
        agreed += said == other
    crossed, agreed_share = crossed / len(rows[0]), agreed / len(rows[0])
    labeled = sum(supervised_loss(log_l, data.labeled.label).item() for log_l, _ in answers)
    assert 0 < agreed_share < 1
    assert losses["pseudo"].item() == pytest.approx(crossed, rel=1e-4)
    assert losses["share_agreed"].item() == pytest.approx(agreed_share, abs=1e-6)
    weight = 2.0 * math.exp(-5 * (1 - 3 / 5) ** 2)
    assert losses["total"].item() == pytest.approx(labeled + weight * crossed, rel=1e-4)


def test_networks_exchange_labels_and_no_gradient() -> None:
    """The gradient of either network is that of its own terms, with the other's answers as constants."""
    method, data = build(2, consistency_weight=2.0), batch(2)
    method.losses(data, 9)["total"].backward()
    found = [p.grad.clone() for p in method.other.parameters()]
    method.zero_grad()
    with torch.no_grad():
        pseudo = forward_concat(
            method.student, data.labeled.image, require_unlabeled(data.unlabeled).weak
        )[1].argmax(1)
    log_l, log_u = forward_concat(
        method.other, data.labeled.image, require_unlabeled(data.unlabeled).weak
    )
    weight = 2.0 * math.exp(-5 * 0.1**2)
    (
        supervised_loss(log_l, data.labeled.label)
        + weight * torch.nn.functional.nll_loss(log_u, pseudo)
    ).backward()
    for one, p in zip(found, method.other.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad, rtol=1e-3, atol=1e-5)


def test_networks_begin_differently() -> None:
    """In 3D by two rules: variances 2 / fan-in (He) and 2 / (fan-in + fan-out) (Glorot); both answer alike else."""
    torch.manual_seed(0)
    method = METHODS["cps"](task(3), Cps.Params())
    one, two = (
        network.down[4][4].weight for network in (method.student, method.other)
    )  # 8 → 8, 27 values each
    assert one.var().item() == pytest.approx(2 / (8 * 27), rel=0.15)
    assert two.var().item() == pytest.approx(2 / (16 * 27), rel=0.15)
    flat = METHODS["cps"](task(2), Cps.Params())
    assert not torch.equal(flat.student.down[0][0].weight, flat.other.down[0][0].weight)
    assert method.predictor is method.student
