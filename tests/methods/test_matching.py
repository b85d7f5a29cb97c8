"""UniMatch and CrossMatch: every term from its definition, which answer teaches which, and how the streams are made."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from crkd_cli.augment.mix import draw_mix
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import dice_loss
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method, forward_concat, require_unlabeled, supervised_loss
from tests.methods.test_contract import batch, calm, task


def build(name: str, dims: int, **params: float) -> Method:
    torch.manual_seed(0)
    kind = METHODS[name]
    method = kind(task(dims), kind.Params(**{"confidence": 0.6, **params}))
    calm(method)
    return method.train()


def dice(p: Tensor, target: Tensor, mask: Tensor, epsilon: float = 1e-5) -> float:
    """Mean over all classes of 1 − (2 Σ p·t + ε) / (Σ p² + Σ t² + ε) over the pixels of mask, in float64."""
    rows, classes = p.detach().double().movedim(1, -1)[mask], target[mask]
    losses = []
    for k in range(p.shape[1]):
        x, t = rows[:, k], (classes == k).double()
        losses.append(1 - (2 * (x * t).sum() + epsilon) / ((x * x).sum() + t.sum() + epsilon))
    return float(sum(losses)) / len(losses)


def target(own: Tensor, partner: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Pseudo-label and where it is confident, of probabilities with a box of the partner's."""
    mixed = torch.where(box.unsqueeze(1), partner, own)
    return mixed.argmax(1), mixed.amax(1) >= 0.6


def boxes(data: Batch) -> list[Tensor]:
    torch.manual_seed(5)
    return [
        draw_mix(require_unlabeled(data.unlabeled).weak.shape, torch.device("cpu"))
        for _ in range(2)
    ]


def test_unimatch_by_hand(dims: int) -> None:
    """Without dropout the perturbed features are the plain ones, and batch norm sees every image twice, which changes nothing."""
    method, data = build("unimatch", dims, feature_dropout=0.0), batch(dims)
    images, partners = (
        require_unlabeled(data.unlabeled),
        require_unlabeled(data.partners),
    )
    with torch.no_grad():
        of_partners = (
            method.eval().student(partners.weak).softmax(1)
        )  # before training changes the averages of batch norm
        method.train()
    first, second = boxes(data)
    torch.manual_seed(5)
    losses = method.losses(data, 0)
    with torch.no_grad():
        log_l, log_w = forward_concat(method.student, data.labeled.image, images.weak)
        views = zip(images.strong, partners.strong, (first, second), strict=True)
        mixed = [torch.where(box.unsqueeze(1), theirs, own) for own, theirs, box in views]
        of_strong = [log_p.exp() for log_p in forward_concat(method.student, *mixed)]
    p = log_w.exp()
    terms = {
        "labeled": supervised_loss(log_l, data.labeled.label).item(),
        "pseudo": sum(
            dice(q, *target(p, of_partners, box))
            for q, box in zip(of_strong, (first, second), strict=True)
        )
        / 2,
        "feature": dice(p, p.argmax(1), p.amax(1) >= 0.6),
        "kept": (p.amax(1) >= 0.6).float().mean().item(),
    }
    assert 0.1 < terms["kept"] < 0.99
    assert first.any() or second.any()
    for name, value in terms.items():
        assert losses[name].item() == pytest.approx(value, rel=2e-4, abs=1e-5), name
    expected = (terms["labeled"] + terms["pseudo"] / 2 + terms["feature"] / 2) / 2
    assert losses["total"].item() == pytest.approx(expected, rel=2e-4)


def test_unimatch_perturbs_features_and_nothing_else(dims: int) -> None:
    method, data = build("unimatch", dims, feature_dropout=0.5), batch(dims)
    with torch.no_grad():
        torch.manual_seed(1)
        plain, weak, perturbed = method.perturbed(
            data.labeled.image, require_unlabeled(data.unlabeled).weak
        )
        torch.manual_seed(2)
        again = method.perturbed(data.labeled.image, require_unlabeled(data.unlabeled).weak)
    assert [len(plain), len(weak), len(perturbed)] == [3, 4, 4]
    assert not torch.allclose(weak, perturbed)
    assert not torch.allclose(perturbed, again[2])
    assert method.student.training


def answers(number: int, count: int, space: tuple[int, ...]) -> list[Tensor]:
    """`number` probability maps [count, 3, *space] that need a gradient."""
    return [(3 * torch.randn(count, 3, *space)).softmax(1).requires_grad_() for _ in range(number)]


def test_crossmatch_terms_by_hand(dims: int) -> None:
    """From given answers to every stream: which teaches which, mixed with which of the partner's, and where gradients go."""
    method, data = (
        build("crossmatch", dims, decoder_share=0.4, distillation_weight=0.7),
        batch(dims),
    )
    space = require_unlabeled(data.unlabeled).weak.shape[2:]
    log_l, log_1 = ((3 * torch.randn(n, 3, *space)).log_softmax(1).requires_grad_() for n in (3, 4))
    partner, weak, strong = (answers(3, 4, space) for _ in range(3))
    plain = answers(1, 4, space)[0]
    passes = iter([(log_l, partner), (log_l, weak), (log_1, strong)])
    method.forward_perturbed = lambda a, b: next(passes)
    method.student = torch.nn.Module()
    method.student.forward = lambda x: plain.log()
    box_1, box_2 = boxes(data)
    torch.manual_seed(5)
    losses = method.losses(data, 0)

    own = (weak[0].argmax(1), weak[0].amax(1) >= 0.6)
    by_partner = [plain, *partner[1:]]
    second = [target(w, m, box_2) for w, m in zip(weak, by_partner, strict=True)]
    epsilon = 1e-4  # as released for ACDC

    def dice_of(p: Tensor, answer: tuple[Tensor, Tensor]) -> float:
        return dice(p, *answer, epsilon)

    terms = {
        "labeled": supervised_loss(
            log_l, data.labeled.label, dice=partial(dice_loss, epsilon=epsilon)
        ).item(),
        "pseudo": (
            dice_of(log_1.exp(), target(weak[0], plain, box_1)) + dice_of(strong[0], second[0])
        )
        / 2,
        "teacher": sum(
            [dice_of(p, own) for p in weak[1:]] + [dice_of(p, second[0]) for p in strong[1:]]
        )
        / 4,
        "decoder": sum(dice_of(p, t) for p, t in zip(strong[1:], second[1:], strict=True)) / 2,
    }
    for name, value in terms.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name
    distilled = 0.6 * terms["teacher"] + 0.4 * terms["decoder"]
    expected = (terms["labeled"] + terms["pseudo"] / 2 + 0.7 * distilled) / 2
    assert losses["total"].item() == pytest.approx(expected, rel=1e-4)
    losses["total"].backward()
    taught = [log_l, log_1, *strong, *weak[1:]]
    assert all(t.grad is not None and t.grad.any() for t in taught)
    assert all(t.grad is None for t in (weak[0], plain, *partner))  # targets only


def test_crossmatch_gives_four_answers_in_one_pass(dims: int) -> None:
    method, data = build("crossmatch", dims, weak_dropout=0.0, strong_dropout=0.9), batch(dims)
    a, b = data.labeled.image, require_unlabeled(data.unlabeled).weak
    with torch.no_grad():
        log_a, (plain, weak, strong) = method.eval().forward_perturbed(a, b)
        log_1, log_2 = forward_concat(method.student, a, b)
    torch.testing.assert_close(log_a, log_1, rtol=1e-4, atol=1e-4)
    for one in (plain, weak):
        torch.testing.assert_close(one, log_2.exp(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(strong, plain, atol=1e-2)


def test_crossmatch_threshold_by_hand() -> None:
    """Fixed; or from 0.75 towards 1 over 1.214 runs, times ln 2: 0.521 at first, 0.668 at the end of 14,000 of 17,000 steps."""
    assert [build("crossmatch", 2).threshold(step) for step in (0, 10)] == [0.6, 0.6]
    method = build("crossmatch", 2, confidence=0.75, confidence_rampup=17 / 14, log2_scaled=True)
    assert method.threshold(0) == pytest.approx((0.75 + 0.25 * math.exp(-5)) * math.log(2))
    assert method.threshold(10) == pytest.approx(0.668, abs=5e-4)
