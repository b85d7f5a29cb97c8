"""Mean teacher, UA-MT and AC-MT: their terms against slow loops in float64, ramps as shares of the run, teachers in training."""

import math

import pytest
import torch

from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method, forward_concat, require_unlabeled, supervised_loss
from tests.methods.test_contract import batch, calm, task


def build(name: str, dims: int = 2, **params: float | str) -> Method:
    torch.manual_seed(0)
    kind = METHODS[name]
    method = kind(task(dims), kind.Params(**params))
    calm(method)
    with torch.no_grad():  # a teacher that is not its student
        for parameter in method.teacher.network.parameters():
            parameter *= 1 + 0.05 * torch.randn_like(parameter)
    return method.train()


def pixels(p: torch.Tensor) -> list[list[float]]:
    """[B, K, *S] → K numbers for every pixel."""
    rows: list[list[float]] = p.detach().double().movedim(1, -1).reshape(-1, p.shape[1]).tolist()
    return rows


NAMES = ["mean_teacher", "ua_mt", "acmt"]


@pytest.mark.parametrize("name", NAMES)
def test_terms_by_hand(name: str, dims: int) -> None:
    """Without noise and dropout all passes of the teacher are one, so that its mean answer and its answer agree."""
    own = {"entropy_threshold": 0.2, "final_entropy_threshold": 0.4} if name == "acmt" else {}
    method, data, step = (
        build(name, dims, noise=0.0, consistency_weight=2.0, rampup=1.0, **own),
        batch(dims),
        4,
    )
    weak = require_unlabeled(data.unlabeled).weak
    losses = method.losses(data, step)
    with torch.no_grad():
        log_l, log_u = forward_concat(method.student, data.labeled.image, weak)
        taught = method.teacher.network(weak).softmax(1)  # batch norm by this batch
    r = math.exp(-5 * (1 - 4 / 10) ** 2)

    def counts(student: list[float], teacher: list[float]) -> bool:
        unsure, doubt = (
            -sum(x * math.log(x + 1e-6) for x in p) / math.log(3) for p in (teacher, student)
        )
        return {
            "mean_teacher": True,
            "ua_mt": unsure < 0.75 + 0.25 * r,
            "acmt": doubt >= 0.2 + 0.2 * r,
        }[name]

    squares, kept = [], 0
    for p, t in zip(pixels(log_u.exp()), pixels(taught), strict=True):
        if counts(p, t):
            kept += 1
            squares += [(a - b) ** 2 for a, b in zip(p, t, strict=True)]
    consistency = sum(squares) / len(squares)
    assert losses["consistency"].item() == pytest.approx(consistency, rel=1e-4)
    assert losses["labeled"].item() == pytest.approx(
        supervised_loss(log_l, data.labeled.label).item(), rel=1e-5
    )
    assert losses["total"].item() == pytest.approx(
        losses["labeled"].item() + 2.0 * r * consistency, rel=1e-4
    )
    if name != "mean_teacher":
        assert 0.1 < losses["kept"].item() < 0.999
        assert losses["kept"].item() == pytest.approx(kept / len(pixels(taught)), abs=1e-6)


@pytest.mark.parametrize("name", ["mean_teacher", "ua_mt"])
def test_labeled_loss_with_dice_over_the_foreground(name: str) -> None:
    """As in UA-MT's program on LA: Dice is the mean of 1 − (2 Σ p t + ε) / (Σ p² + Σ t² + ε) over the foreground classes."""
    method, data = build(name, 3, noise=0.0, dice_classes="foreground"), batch(3)
    losses = method.losses(data, 0)
    with torch.no_grad():
        log_l, _ = forward_concat(
            method.student, data.labeled.image, require_unlabeled(data.unlabeled).weak
        )
    p, target = (
        log_l.exp().double(),
        torch.eye(3, dtype=torch.float64)[data.labeled.label].movedim(-1, 1),
    )
    p_k, t_k = (
        x[:, 1:].transpose(0, 1).flatten(1) for x in (p, target)
    )  # [K − 1, voxels of the batch]
    dice = 1 - (2 * (p_k * t_k).sum(1) + 1e-5) / (p_k.square().sum(1) + t_k.sum(1) + 1e-5)
    cross_entropy = -(target * p.log()).sum(1).mean()
    assert losses["labeled"].item() == pytest.approx(
        (0.5 * (cross_entropy + dice.mean())).item(), rel=1e-4
    )


def test_mean_teacher_weight_by_hand() -> None:
    """λ(t) is 0 before the delay and 0.1 exp(−5 (1 − t/T)²) from then on; twice the run, twice the steps."""
    method = build("mean_teacher", rampup_delay=0.3)
    assert [method.weight(step) for step in (0, 2, 3, 10)] == pytest.approx(
        [0, 0, 0.1 * math.exp(-5 * 0.49), 0.1]
    )
    long = METHODS["mean_teacher"](task(2, steps=20), method.params)
    assert [long.weight(2 * step) for step in (0, 2, 3, 10)] == [
        method.weight(step) for step in (0, 2, 3, 10)
    ]


def test_ua_mt_threshold_by_hand() -> None:
    """From 0.75 ln K (R(0) = e⁻⁵) to ln K; with the legacy constants ln 2 whatever K, and the sum over K classes halved."""
    method, legacy = build("ua_mt"), build("ua_mt", legacy_constants=True)
    assert method.threshold(0) == pytest.approx((0.75 + 0.25 * math.exp(-5)) * math.log(3))
    assert method.threshold(10) == pytest.approx(math.log(3))
    assert legacy.threshold(10) == pytest.approx(math.log(2))
    data = batch(2)
    torch.manual_seed(4)
    losses = method.losses(data, 10)
    legacy.threshold = method.threshold
    torch.manual_seed(4)
    assert legacy.losses(data, 10)["consistency"].item() == pytest.approx(
        1.5 * losses["consistency"].item(), rel=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_teacher_drops_features_in_training_only_and_gets_no_gradient(name: str) -> None:
    torch.manual_seed(0)
    method = METHODS[name](task(2), METHODS[name].Params()).train()
    x = require_unlabeled(batch(2).unlabeled).weak
    assert not torch.equal(method.teacher.network(x), method.teacher.network(x))
    assert method.teacher.network(x).requires_grad is False
    method.eval()
    assert torch.equal(method.teacher.network(x), method.teacher.network(x))
    assert method.predictor is method.student


def test_uncertainty_is_that_of_the_mean_answer() -> None:
    """Passes that contradict each other are uncertain, however sure each of them is."""
    method = build("ua_mt", noise=0.0, passes=4)
    answers = iter([0, 0, 1, 0, 1])  # the first is the target; two images at a time share a pass
    sure = torch.tensor([[9.0, -9.0, -9.0], [-9.0, 9.0, -9.0]])

    class Says(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            halves = (
                [sure[next(answers)]] if len(x) == 1 else [sure[next(answers)], sure[next(answers)]]
            )
            return torch.stack(halves).view(-1, 3, 1, 1).expand(-1, 3, *x.shape[2:])

    method.teacher.network = Says()
    taught, certain = method.teach(torch.zeros(1, 1, 2, 2), 0)
    assert taught[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    # Half 0, half 1: ln 2 = 0.693 < 0.825 = h(0) of three classes; not below ln 2 of two.
    assert certain.all()
    method.classes, answers = 2, iter([0, 0, 1, 0, 1])
    assert not method.teach(torch.zeros(1, 1, 2, 2), 0)[1].any()


def test_acmt_threshold_and_mask_by_hand() -> None:
    """From 0.75 (R(0) = e⁻⁵) to 0.95, or down to 0.6; the mask has no gradient: the loss on chosen pixels is the whole of it."""
    assert [build("acmt").threshold(step) for step in (0, 10)] == pytest.approx(
        [0.75 + 0.2 * math.exp(-5), 0.95]
    )
    assert build("acmt", final_entropy_threshold=0.6).threshold(10) == pytest.approx(0.6)
    none = build("acmt", entropy_threshold=1.0, final_entropy_threshold=1.0).losses(batch(2), 9)
    assert none["kept"].item() == none["consistency"].item() == 0.0
