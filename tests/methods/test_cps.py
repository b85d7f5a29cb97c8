"""CPS: the cross term by a slow loop; two networks that exchange labels and start differently."""

import math

import pytest
import torch

from crkd_cli.methods import METHODS
from crkd_cli.methods.base import forward_concat, require_unlabeled
from crkd_cli.methods.cps import Cps
from tests.methods.test_contract import batch, make_deterministic, task


def build(dims: int, **params: float) -> Cps:
    torch.manual_seed(0)
    method = METHODS["cps"](task(dims), Cps.Params(**params))
    assert isinstance(method, Cps)
    make_deterministic(method)
    return method.train()


def test_terms_by_hand(dims: int) -> None:
    method, data = build(dims, consistency_weight=2.0, rampup=0.5), batch(dims)
    losses = method.losses(data, 3)
    weak = require_unlabeled(data.unlabeled).weak
    log_l, log_u = zip(
        forward_concat(method.student, data.labeled.image, weak),
        forward_concat(method.other, data.labeled.image, weak),
        strict=True,
    )
    rows = [log_p.detach().double().movedim(1, -1).reshape(-1, 3).tolist() for log_p in log_u]
    pseudo, agreed = 0.0, 0
    for log_p, log_q in zip(*rows, strict=True):
        label_p, label_q = log_p.index(max(log_p)), log_q.index(max(log_q))
        pseudo -= log_p[label_q] + log_q[label_p]
        agreed += label_p == label_q
    pseudo, agreed_share = pseudo / len(rows[0]), agreed / len(rows[0])
    labeled = sum(method.supervised_loss(log_p, data.labeled.label).item() for log_p in log_l)
    assert 0 < agreed_share < 1
    assert losses["pseudo"].item() == pytest.approx(pseudo, rel=1e-4)
    assert losses["share_agreed"].item() == pytest.approx(agreed_share, abs=1e-6)
    weight = 2.0 * math.exp(-5 * (1 - 3 / 5) ** 2)
    assert losses["total"].item() == pytest.approx(labeled + weight * pseudo, rel=1e-4)


def test_networks_exchange_labels_and_no_gradient() -> None:
    """The gradient of a network is that of its own terms, with the other's labels as constants."""
    method, data = build(2, consistency_weight=2.0), batch(2)
    method.losses(data, 9)["total"].backward()
    gradients = [p.grad.clone() for p in method.other.parameters()]
    method.zero_grad()
    weak = require_unlabeled(data.unlabeled).weak
    with torch.no_grad():
        _, log_u = forward_concat(method.student, data.labeled.image, weak)
    pseudo_label = log_u.argmax(1)
    log_l, log_u = forward_concat(method.other, data.labeled.image, weak)
    weight = 2.0 * math.exp(-5 * 0.1**2)
    pseudo = torch.nn.functional.nll_loss(log_u, pseudo_label)
    (method.supervised_loss(log_l, data.labeled.label) + weight * pseudo).backward()
    for gradient, p in zip(gradients, method.other.parameters(), strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-3, atol=1e-5)


def test_networks_start_differently() -> None:
    """In 3D by two rules, He's variance 2 / fan-in and Glorot's 2 / (fan-in + fan-out)."""
    torch.manual_seed(0)
    method = METHODS["cps"](task(3), Cps.Params())
    # 8 → 8 channels, 27 weights each.
    he, glorot = method.student.down[4][4].weight, method.other.down[4][4].weight
    assert he.var().item() == pytest.approx(2 / (8 * 27), rel=0.15)
    assert glorot.var().item() == pytest.approx(2 / (16 * 27), rel=0.15)
    method_2d = METHODS["cps"](task(2), Cps.Params())
    first, second = method_2d.student.down[0][0].weight, method_2d.other.down[0][0].weight
    assert not torch.equal(first, second)
    assert method.predictor is method.student
