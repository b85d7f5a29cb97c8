"""UniMatch and CrossMatch: every term from its definition, which prediction teaches which."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from crkd_cli.augment.mix import draw_mix
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import dice_loss
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method, forward_concat, require_unlabeled
from crkd_cli.methods.crossmatch import ByPerturbation
from tests.methods.test_contract import batch, make_deterministic, task


def build(name: str, dims: int, **params: float) -> Method:
    torch.manual_seed(0)
    method_class = METHODS[name]
    method = method_class(task(dims), method_class.Params(**{"confidence": 0.6, **params}))
    make_deterministic(method)
    return method.train()


def dice(p: Tensor, target: Tensor, mask: Tensor, epsilon: float = 1e-5) -> float:
    """Average 1 − (2 Σ p·t + ε) / (Σ p² + Σ t² + ε) over all classes, inside mask, in float64."""
    rows, classes = p.detach().double().movedim(1, -1)[mask], target[mask]
    losses = []
    for k in range(p.shape[1]):
        x, t = rows[:, k], (classes == k).double()
        losses.append(1 - (2 * (x * t).sum() + epsilon) / ((x * x).sum() + t.sum() + epsilon))
    return float(sum(losses)) / len(losses)


def target(p: Tensor, partner: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pseudo-label of p with a box of the partner, and where it is confident."""
    mixed = torch.where(box.unsqueeze(1), partner, p)
    return mixed.argmax(1), mixed.amax(1) >= 0.6


def boxes(data: Batch) -> list[Tensor]:
    torch.manual_seed(5)
    shape = require_unlabeled(data.unlabeled).weak.shape
    return [draw_mix(shape, torch.device("cpu")) for _ in range(2)]


def test_unimatch_by_hand(dims: int) -> None:
    """Without dropout the perturbed features are the plain ones.

    Batch norm sees every image twice, which changes nothing.
    """
    method, data = build("unimatch", dims, feature_dropout=0.0), batch(dims)
    images, partners = require_unlabeled(data.unlabeled), require_unlabeled(data.partners)
    with torch.no_grad():  # before training changes the running statistics
        p_partners = method.eval().student(partners.weak).softmax(1)
    method.train()
    first, second = boxes(data)
    torch.manual_seed(5)
    losses = method.losses(data, 0)
    with torch.no_grad():
        log_l, log_w = forward_concat(method.student, data.labeled.image, images.weak)
        views = zip(images.strong, partners.strong, (first, second), strict=True)
        mixed = [torch.where(box.unsqueeze(1), partner, x) for x, partner, box in views]
        p_1, p_2 = (log_p.exp() for log_p in forward_concat(method.student, *mixed))
    p = log_w.exp()
    loss_1 = dice(p_1, *target(p, p_partners, first))
    loss_2 = dice(p_2, *target(p, p_partners, second))
    terms = {
        "labeled": method.supervised_loss(log_l, data.labeled.label).item(),
        "pseudo": (loss_1 + loss_2) / 2,
        "feature": dice(p, p.argmax(1), p.amax(1) >= 0.6),
        "kept": (p.amax(1) >= 0.6).float().mean().item(),
    }
    assert 0.1 < terms["kept"] < 0.99
    assert first.any() or second.any()
    for name, value in terms.items():
        assert losses[name].item() == pytest.approx(value, rel=2e-4, abs=1e-5), name
    expected = (terms["labeled"] + terms["pseudo"] / 2 + terms["feature"] / 2) / 2
    assert losses["total"].item() == pytest.approx(expected, rel=2e-4)


def test_unimatch_perturbs_only_the_features_of_its_last_prediction(dims: int) -> None:
    method, data = build("unimatch", dims, feature_dropout=0.5), batch(dims)
    images = data.labeled.image, require_unlabeled(data.unlabeled).weak
    with torch.no_grad():
        torch.manual_seed(1)
        labeled, weak, perturbed = method.forward_perturbed(*images)
        torch.manual_seed(2)
        _, _, perturbed_again = method.forward_perturbed(*images)
    assert [len(labeled), len(weak), len(perturbed)] == [3, 4, 4]
    assert not torch.allclose(weak, perturbed)
    assert not torch.allclose(perturbed, perturbed_again)
    assert method.student.training


def predictions(number: int, count: int, space: tuple[int, ...]) -> list[Tensor]:
    """Draw `number` probability maps [count, 3, *space] that require a gradient."""
    return [(3 * torch.randn(count, 3, *space)).softmax(1).requires_grad_() for _ in range(number)]


def test_crossmatch_terms_by_hand(dims: int) -> None:
    """With given predictions: which teaches which, with which of the partner mixed in.

    Also checks where gradients go.
    """
    method = build("crossmatch", dims, decoder_share=0.4, distillation_weight=0.7)
    data = batch(dims)
    space = require_unlabeled(data.unlabeled).weak.shape[2:]
    log_l, log_1 = ((3 * torch.randn(n, 3, *space)).log_softmax(1).requires_grad_() for n in (3, 4))
    partner, weak, strong = (ByPerturbation(*predictions(3, 4, space)) for _ in range(3))
    (plain,) = predictions(1, 4, space)
    passes = iter([(log_l, partner), (log_l, weak), (log_1, strong)])
    method.forward_perturbed = lambda a, b: next(passes)
    method.student = torch.nn.Module()
    method.student.forward = lambda x: plain.log()
    box_1, box_2 = boxes(data)
    torch.manual_seed(5)
    losses = method.losses(data, 0)

    weak_target = (weak[0].argmax(1), weak[0].amax(1) >= 0.6)
    first_target = target(weak[0], plain, box_1)
    partners = [plain, *partner[1:]]
    second_targets = [target(w, m, box_2) for w, m in zip(weak, partners, strict=True)]
    epsilon = 1e-4  # as released for ACDC
    labeled_dice = partial(dice_loss, epsilon=epsilon)

    def mean_dice(*pairs: tuple[Tensor, tuple[Tensor, Tensor]]) -> float:
        return sum(dice(p, *target, epsilon) for p, target in pairs) / len(pairs)

    terms = {
        "labeled": method.supervised_loss(log_l, data.labeled.label, dice=labeled_dice).item(),
        "pseudo": mean_dice((log_1.exp(), first_target), (strong[0], second_targets[0])),
        "teacher": mean_dice(
            (weak[1], weak_target),
            (weak[2], weak_target),
            (strong[1], second_targets[0]),
            (strong[2], second_targets[0]),
        ),
        "decoder": mean_dice((strong[1], second_targets[1]), (strong[2], second_targets[2])),
    }
    for name, value in terms.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name
    distilled = 0.6 * terms["teacher"] + 0.4 * terms["decoder"]
    expected = (terms["labeled"] + terms["pseudo"] / 2 + 0.7 * distilled) / 2
    assert losses["total"].item() == pytest.approx(expected, rel=1e-4)
    losses["total"].backward()
    learners, targets = [log_l, log_1, *strong, *weak[1:]], [weak[0], plain, *partner]
    assert all(x.grad is not None and x.grad.any() for x in learners)
    assert all(x.grad is None for x in targets)


def test_crossmatch_makes_four_predictions_in_one_pass(dims: int) -> None:
    method, data = build("crossmatch", dims, weak_dropout=0.0, strong_dropout=0.9), batch(dims)
    a, b = data.labeled.image, require_unlabeled(data.unlabeled).weak
    with torch.no_grad():
        log_a, (plain, weak, strong) = method.eval().forward_perturbed(a, b)
        log_1, log_2 = forward_concat(method.student, a, b)
    torch.testing.assert_close(log_a, log_1, rtol=1e-4, atol=1e-4)
    for p in (plain, weak):
        torch.testing.assert_close(p, log_2.exp(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(strong, plain, atol=1e-2)


def test_crossmatch_threshold_by_hand() -> None:
    """Constant; or from 0.75 towards 1 over 1.214 runs, times ln 2.

    On LA that is 0.521 at first and 0.668 after 14,000 of 17,000 steps.
    """
    assert [build("crossmatch", 2).threshold(step) for step in (0, 10)] == [0.6, 0.6]
    method = build("crossmatch", 2, confidence=0.75, confidence_rampup=17 / 14, log2_scaled=True)
    assert method.threshold(0) == pytest.approx((0.75 + 0.25 * math.exp(-5)) * math.log(2))
    assert method.threshold(10) == pytest.approx(0.668, abs=5e-4)
