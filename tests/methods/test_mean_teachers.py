"""Mean teacher, UA-MT and AC-MT: terms against slow loops in float64, ramps, dropout."""

import itertools
import math

import pytest
import torch

from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method, forward_concat, require_unlabeled
from tests.methods.test_contract import batch, make_deterministic, task


def build(name: str, dims: int = 2, **params: float | str) -> Method:
    torch.manual_seed(0)
    method_class = METHODS[name]
    method = method_class(task(dims), method_class.Params(**params))
    make_deterministic(method)
    with torch.no_grad():  # make the teacher differ from the student
        for parameter in method.teacher.network.parameters():
            parameter *= 1 + 0.05 * torch.randn_like(parameter)
    return method.train()


def pixels(p: torch.Tensor) -> list[list[float]]:
    """List the K numbers of every pixel of p [B, K, *S]."""
    rows: list[list[float]] = p.detach().double().movedim(1, -1).reshape(-1, p.shape[1]).tolist()
    return rows


NAMES = ["mean_teacher", "ua_mt", "acmt"]


@pytest.mark.parametrize("name", NAMES)
def test_terms_by_hand(name: str, dims: int) -> None:
    """Without noise and dropout all passes of the teacher are the same."""
    thresholds = {"entropy_threshold": 0.2, "final_entropy_threshold": 0.4}
    more = thresholds if name == "acmt" else {}
    method = build(name, dims, noise=0.0, consistency_weight=2.0, rampup=1.0, **more)
    data, step = batch(dims), 4
    weak = require_unlabeled(data.unlabeled).weak
    losses = method.losses(data, step)
    with torch.no_grad():
        log_l, log_u = forward_concat(method.student, data.labeled.image, weak)
        target = method.teacher.network(weak).softmax(1)  # batch norm by this batch
    ramp = math.exp(-5 * (1 - 4 / 10) ** 2)

    def relative_entropy(p: list[float]) -> float:
        return -sum(x * math.log(x + 1e-6) for x in p) / math.log(3)

    def counts(student: list[float], teacher: list[float]) -> bool:
        if name == "ua_mt":
            return relative_entropy(teacher) < 0.75 + 0.25 * ramp
        if name == "acmt":
            return relative_entropy(student) >= 0.2 + 0.2 * ramp
        return True

    squares, kept = [], 0
    for p, t in zip(pixels(log_u.exp()), pixels(target), strict=True):
        if counts(p, t):
            kept += 1
            squares += [(a - b) ** 2 for a, b in zip(p, t, strict=True)]
    consistency = sum(squares) / len(squares)
    assert losses["consistency"].item() == pytest.approx(consistency, rel=1e-4)
    labeled = method.supervised_loss(log_l, data.labeled.label).item()
    assert losses["labeled"].item() == pytest.approx(labeled, rel=1e-5)
    assert losses["total"].item() == pytest.approx(labeled + 2.0 * ramp * consistency, rel=1e-4)
    if name != "mean_teacher":
        assert 0.1 < losses["kept"].item() < 0.999
        assert losses["kept"].item() == pytest.approx(kept / len(pixels(target)), abs=1e-6)


@pytest.mark.parametrize("name", ["mean_teacher", "ua_mt"])
def test_labeled_loss_with_dice_over_the_foreground(name: str) -> None:
    """As in UA-MT's program on LA: the mean of 1 − (2 Σ p t + ε) / (Σ p² + Σ t² + ε)."""
    method, data = build(name, 3, noise=0.0, dice_classes="foreground"), batch(3)
    losses = method.losses(data, 0)
    with torch.no_grad():
        weak = require_unlabeled(data.unlabeled).weak
        log_l, _ = forward_concat(method.student, data.labeled.image, weak)
    p = log_l.exp().double()
    target = torch.eye(3, dtype=torch.float64)[data.labeled.label].movedim(-1, 1)
    # [K − 1, voxels of the batch]
    p_k, t_k = (x[:, 1:].transpose(0, 1).flatten(1) for x in (p, target))
    dice = 1 - (2 * (p_k * t_k).sum(1) + 1e-5) / (p_k.square().sum(1) + t_k.sum(1) + 1e-5)
    cross_entropy = -(target * p.log()).sum(1).mean()
    expected = (0.5 * (cross_entropy + dice.mean())).item()
    assert losses["labeled"].item() == pytest.approx(expected, rel=1e-4)


def test_mean_teacher_weight_by_hand() -> None:
    """λ(t) is 0 before the delay and 0.1 exp(−5 (1 − t/T)²) after it; a longer run stretches it."""
    method = build("mean_teacher", rampup_delay=0.3)
    weights = [method.weight(step) for step in (0, 2, 3, 10)]
    assert weights == pytest.approx([0, 0, 0.1 * math.exp(-5 * 0.49), 0.1])
    longer = METHODS["mean_teacher"](task(2, steps=20), method.params)
    assert [longer.weight(2 * step) for step in (0, 2, 3, 10)] == weights


def test_ua_mt_threshold_by_hand() -> None:
    """From 0.75 ln K (with R(0) = e⁻⁵) to ln K.

    With the legacy constants it is ln 2 for any K, and the sum over K classes is halved.
    """
    method, legacy = build("ua_mt"), build("ua_mt", legacy_constants=True)
    assert method.threshold(0) == pytest.approx((0.75 + 0.25 * math.exp(-5)) * math.log(3))
    assert method.threshold(10) == pytest.approx(math.log(3))
    assert legacy.threshold(10) == pytest.approx(math.log(2))
    data = batch(2)
    torch.manual_seed(4)
    losses = method.losses(data, 10)
    legacy.threshold = method.threshold
    torch.manual_seed(4)
    expected = 1.5 * losses["consistency"].item()
    assert legacy.losses(data, 10)["consistency"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_teacher_uses_dropout_in_training_only_and_gets_no_gradient(name: str) -> None:
    torch.manual_seed(0)
    method = METHODS[name](task(2), METHODS[name].Params()).train()
    x = require_unlabeled(batch(2).unlabeled).weak
    assert not torch.equal(method.teacher.network(x), method.teacher.network(x))
    assert method.teacher.network(x).requires_grad is False
    method.eval()
    assert torch.equal(method.teacher.network(x), method.teacher.network(x))
    assert method.predictor is method.student


def test_uncertainty_is_that_of_the_mean_prediction() -> None:
    """Passes that contradict each other are uncertain, however certain each of them is."""
    method = build("ua_mt", noise=0.0, passes=4)
    classes = itertools.cycle([0, 1])
    logits = torch.tensor([[9.0, -9.0, -9.0], [-9.0, 9.0, -9.0]])

    class Alternating(torch.nn.Module):
        """Is certain of class 0 in one image and of class 1 in the next."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = torch.stack([logits[next(classes)] for _ in x])
            return rows.view(-1, 3, 1, 1).expand(-1, 3, *x.shape[2:])

    method.teacher.network = Alternating()
    uncertainty = method.uncertainty(torch.zeros(1, 1, 2, 2))
    expected = torch.full((1, 2, 2), math.log(2))  # half class 0, half class 1
    torch.testing.assert_close(uncertainty, expected, atol=1e-4, rtol=0)
    # ln 2 = 0.693 is below h(0) = 0.825 of three classes, but not below that of two.
    assert (uncertainty < method.threshold(0)).all()
    method.classes = 2
    assert not (uncertainty < method.threshold(0)).any()
    assert method.teacher_probabilities(torch.zeros(1, 1, 2, 2))[0, :, 0, 0].tolist() == (
        pytest.approx([1, 0, 0], abs=1e-6)
    )


def test_acmt_threshold_and_mask_by_hand() -> None:
    """From 0.75 (with R(0) = e⁻⁵) to 0.95, or down to 0.6; at 1, no pixel counts."""
    thresholds = [build("acmt").threshold(step) for step in (0, 10)]
    assert thresholds == pytest.approx([0.75 + 0.2 * math.exp(-5), 0.95])
    assert build("acmt", final_entropy_threshold=0.6).threshold(10) == pytest.approx(0.6)
    highest = build("acmt", entropy_threshold=1.0, final_entropy_threshold=1.0)
    losses = highest.losses(batch(2), 9)
    assert losses["kept"].item() == losses["consistency"].item() == 0.0
