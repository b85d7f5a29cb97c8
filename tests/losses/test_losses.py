"""Every loss term against a slow loop over pixels in float64, and the direction of its gradient."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from crkd_cli.losses.dice import DiceClasses, dice_loss
from crkd_cli.losses.distill import (
    feature_distillation,
    low_entropy_consistency,
    pixel_distillation,
    reliability,
)
from crkd_cli.losses.pixel import (
    cross_entropy,
    divergence,
    entropy,
    log_probabilities,
    masked_mean,
    probabilities,
)

B, K = 2, 3


@pytest.fixture
def space(dims: int) -> tuple[int, ...]:
    torch.manual_seed(dims)
    return (4, 3, 2)[:dims]


def logits(space: tuple[int, ...], channels: int = K) -> Tensor:
    return torch.randn(B, channels, *space, requires_grad=True)


def pixels(x: Tensor) -> list[list[float]]:
    """List the C numbers of every pixel of x [B, C, *S] in float64."""
    return x.detach().double().movedim(1, -1).reshape(-1, x.shape[1]).tolist()


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def test_dice_is_0_when_right_and_1_when_wrong(dims: int) -> None:
    target = torch.zeros(1, *[4] * dims, dtype=torch.long)
    target[:, :2] = 1
    right = torch.nn.functional.one_hot(target, 2).movedim(-1, 1).float()
    assert dice_loss(right, target).item() == pytest.approx(0.0, abs=1e-6)
    assert dice_loss(right.flip(1), target).item() == pytest.approx(1.0, abs=1e-5)
    half = torch.full_like(right, 0.5)
    n = target.numel()  # Σp·t = n/4, Σp² = n/4, Σt² = n/2 for either class
    assert dice_loss(half, target).item() == pytest.approx(1 - (n / 2) / (n / 4 + n / 2), abs=1e-5)


def test_dice_with_a_mask_is_dice_of_the_pixels_inside(space: tuple[int, ...]) -> None:
    p, target = logits(space).softmax(1), torch.randint(K, (B, *space))
    mask = torch.rand(B, *space) < 0.6
    inside = p.movedim(1, -1)[mask].T.unsqueeze(0)  # [1, K, n]
    expected = dice_loss(inside, target[mask].unsqueeze(0))
    torch.testing.assert_close(dice_loss(p, target, mask), expected)


def test_dice_of_26_classes_of_which_most_are_absent(dims: int) -> None:
    """By hand: N pixels of class 0 and N of class 9; the others are absent or not kept.

    An absent class that gets p = 1/26 everywhere has a loss of nearly 1, and of 0 if it gets none.
    Its gradient is far below that of a present class, so that it does not unlearn the class.
    """
    target = torch.zeros(1, 4, *((900,), (30, 30))[dims - 2], dtype=torch.long)
    target[:, 2:] = 9
    target[:, 3] = 20
    mask = target != 20  # class 20 has no pixel that counts
    n = target[:, 0].numel()
    right = torch.nn.functional.one_hot(target, 26).movedim(-1, 1).float()
    assert dice_loss(right, target, mask).item() == pytest.approx(0.0, abs=1e-6)

    p = torch.full_like(right, 1 / 26).requires_grad_()
    loss = dice_loss(p, target, mask)
    rest = 3 * n / 26**2  # Σp² of any class inside the mask
    background, ninth = 1 - (4 * n / 26) / (rest + 2 * n), 1 - (2 * n / 26) / (rest + n)
    assert loss.item() == pytest.approx((background + ninth + 24) / 26, abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, p)
    by_class = gradient.abs().movedim(1, 0).flatten(1).amax(1)
    present = torch.tensor([k in (0, 9) for k in range(26)])
    assert by_class[~present].max() < 2e-4 * by_class[present].min()
    assert not gradient.movedim(1, -1)[~mask].any()

    skipped = dice_loss(p, target, mask, skip_absent=True)
    assert skipped.item() == pytest.approx((background + ninth) / 26, abs=1e-5)
    (gradient,) = torch.autograd.grad(skipped, p)
    assert not gradient.movedim(1, 0)[~present].any()


def slow_dice(p: Tensor, target: Tensor, k: int, epsilon: float, power: int) -> float:
    """Compute 1 − (2 Σ p·t + ε) / (Σ p^power + Σ t + ε) of class k, pixel by pixel."""
    truth = [float(t == k) for t in target.flatten().tolist()]
    rows = list(zip([row[k] for row in pixels(p)], truth, strict=True))
    overlap = sum(a * b for a, b in rows)
    return 1 - (2 * overlap + epsilon) / (sum(a**power + b for a, b in rows) + epsilon)


@pytest.mark.parametrize(("classes", "first"), [("all", 0), ("foreground", 1)])
@pytest.mark.parametrize(("squared", "power"), [(True, 2), (False, 1)])
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_the_forms_of_the_dice_loss(
    space: tuple[int, ...],
    classes: DiceClasses,
    first: int,
    squared: bool,
    power: int,
    epsilon: float,
) -> None:
    """Sums over the whole batch, and the mean over the Dice of each image."""
    p, target = logits(space).softmax(1), torch.randint(K, (B, *space))
    pooled = mean([slow_dice(p, target, k, epsilon, power) for k in range(first, K)])
    by_image = []
    for n in range(B):
        by_image += [slow_dice(p[[n]], target[[n]], k, epsilon, power) for k in range(first, K)]
    form = partial(dice_loss, p, target, classes=classes, squared=squared, epsilon=epsilon)
    assert form(pooled=True).item() == pytest.approx(pooled, abs=1e-6)
    assert form(pooled=False).item() == pytest.approx(mean(by_image), abs=1e-6)


def test_pixel_terms_equal_torch(space: tuple[int, ...]) -> None:
    z, target = logits(space), torch.randint(K, (B, *space))
    log_p, log_q = log_probabilities(z), log_probabilities(logits(space))
    expected = torch.nn.functional.cross_entropy(z, target, reduction="none")
    torch.testing.assert_close(cross_entropy(log_p, target), expected)
    expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(divergence(log_p, log_q), expected)
    expected = torch.distributions.Categorical(logits=z.movedim(1, -1)).entropy()
    torch.testing.assert_close(entropy(log_p), expected)


def test_masked_mean_leaves_masked_values_out_even_if_infinite() -> None:
    values, mask = torch.tensor([[1.0, math.inf, 3.0]]), torch.tensor([[True, False, True]])
    assert masked_mean(values, mask).item() == 2.0
    assert masked_mean(values, torch.zeros_like(mask)).item() == 0.0
    with pytest.raises(ValueError, match="differ in shape"):
        masked_mean(values, mask[:, :2])


def streams(space: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw logits of both streams, a pseudo-label and a keep mask."""
    return logits(space), logits(space), torch.randint(K, (B, *space)), torch.rand(B, *space) < 0.7


def teachers(z_s: Tensor, z_fp: Tensor, pseudo: Tensor, keep: Tensor) -> list[str | None]:
    """Name the teacher of every pixel that is kept: the stream with the smaller cross entropy."""
    names: list[str | None] = []
    targets = zip(pseudo.flatten().tolist(), keep.flatten().tolist(), strict=True)
    for s, fp, (label, kept) in zip(pixels(z_s), pixels(z_fp), targets, strict=True):
        nearer = "s" if softmax(s)[label] > softmax(fp)[label] else "fp"
        names.append(nearer if kept else None)
    return names


def test_cpkd_against_a_loop(space: tuple[int, ...]) -> None:
    z_s, z_fp, pseudo, keep = streams(space)
    rows = list(zip(pixels(z_s), pixels(z_fp), teachers(z_s, z_fp, pseudo, keep), strict=True))
    to_fp = [kl(softmax(s), softmax(fp)) for s, fp, teacher in rows if teacher == "s"]
    to_s = [kl(softmax(fp), softmax(s)) for s, fp, teacher in rows if teacher == "fp"]
    expected = (mean(to_fp) + mean(to_s)) / K  # divided by K as released
    log_s, log_fp = log_probabilities(z_s), log_probabilities(z_fp)
    s_teaches, fp_teaches = reliability(log_s, log_fp, pseudo, keep)
    assert not (s_teaches & fp_teaches).any()
    assert torch.equal(s_teaches | fp_teaches, keep)
    loss = pixel_distillation(log_s, log_fp, s_teaches, fp_teaches)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_cfkd_against_a_loop(space: tuple[int, ...]) -> None:
    z_s, z_fp, pseudo, keep = streams(space)
    f_s, f_fp = logits(space, 5), logits(space, 5)

    def distance(a: list[float], b: list[float]) -> float:
        product = sum(x * y for x, y in zip(a, b, strict=True))
        return 1 - product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    rows = list(zip(pixels(f_s), pixels(f_fp), teachers(z_s, z_fp, pseudo, keep), strict=True))
    expected = mean([distance(s, fp) for s, fp, teacher in rows if teacher == "s"])
    expected += mean([distance(s, fp) for s, fp, teacher in rows if teacher == "fp"])
    teaches = reliability(log_probabilities(z_s), log_probabilities(z_fp), pseudo, keep)
    assert feature_distillation(f_s, f_fp, *teaches).item() == pytest.approx(expected, abs=1e-6)


def test_cfkd_gradient_is_that_of_two_directed_cosines(space: tuple[int, ...]) -> None:
    """Compare with torch's cosine similarity, the teacher detached, with one term per direction."""
    z_s, z_fp, pseudo, keep = streams(space)
    f_s, f_fp = logits(space, 5), logits(space, 5)
    teaches = reliability(log_probabilities(z_s), log_probabilities(z_fp), pseudo, keep)
    to_fp = 1.0 - torch.nn.functional.cosine_similarity(f_s.detach(), f_fp)
    to_s = 1.0 - torch.nn.functional.cosine_similarity(f_s, f_fp.detach())
    plain_loss = to_fp[teaches[0]].mean() + to_s[teaches[1]].mean()
    expected = torch.autograd.grad(plain_loss, (f_s, f_fp))
    loss = feature_distillation(f_s, f_fp, *teaches)
    torch.testing.assert_close(torch.autograd.grad(loss, (f_s, f_fp)), expected)


@pytest.mark.parametrize("term", ["pixel", "feature"])
def test_the_teacher_gets_no_gradient(term: str, space: tuple[int, ...]) -> None:
    z_s, z_fp, pseudo, keep = streams(space)
    log_s, log_fp = log_probabilities(z_s), log_probabilities(z_fp)
    s_teaches, fp_teaches = reliability(log_s, log_fp, pseudo, keep)
    if term == "pixel":
        inputs, loss = (z_s, z_fp), pixel_distillation(log_s, log_fp, s_teaches, fp_teaches)
    else:
        inputs = logits(space, 5), logits(space, 5)
        loss = feature_distillation(*inputs, s_teaches, fp_teaches)
    s_learns, fp_learns = (g.abs().sum(1) > 0 for g in torch.autograd.grad(loss, inputs))
    assert torch.equal(s_learns, fp_teaches)  # and nowhere else
    assert torch.equal(fp_learns, s_teaches)


def test_distillation_moves_the_learner_towards_the_teacher(space: tuple[int, ...]) -> None:
    z_s, z_fp, *_ = streams(space)
    everywhere = torch.ones(B, *space, dtype=torch.bool)

    def loss(fp: Tensor) -> Tensor:
        log_s, log_fp = log_probabilities(z_s), log_probabilities(fp)
        return pixel_distillation(log_s, log_fp, everywhere, ~everywhere)

    (gradient,) = torch.autograd.grad(loss(z_fp), z_fp)
    assert loss(z_fp - 0.1 * gradient).item() < loss(z_fp).item()
    assert loss(z_s).item() == pytest.approx(0.0, abs=1e-6)


def test_lec_against_a_loop(space: tuple[int, ...]) -> None:
    z_s, z_fp, *_ = streams(space)
    values = []
    for rows in zip(pixels(z_s), pixels(z_fp), strict=True):
        p = [softmax(row) for row in rows]
        w = [math.exp(sum(a * math.log(a) for a in v)) * max(v) for v in p]
        alpha = [x / sum(w) for x in w]
        q = [sum(a * v[k] for a, v in zip(alpha, p, strict=True)) for k in range(K)]
        values.append(sum(a * kl(v, q) for a, v in zip(alpha, p, strict=True)))
    loss = low_entropy_consistency(log_probabilities(z_s), log_probabilities(z_fp))
    assert loss.item() == pytest.approx(mean(values), abs=1e-6)


def test_lec_is_0_for_equal_streams_and_has_a_finite_gradient_for_certain_ones(
    space: tuple[int, ...],
) -> None:
    log_p = log_probabilities(logits(space))
    assert low_entropy_consistency(log_p, log_p).item() == pytest.approx(0.0, abs=1e-6)
    certain = torch.zeros(B, K, *space)
    certain[:, 0] = 200.0
    opposite = certain.flip(1).requires_grad_()
    loss = low_entropy_consistency(log_probabilities(certain), log_probabilities(opposite))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)  # q is half of each
    (gradient,) = torch.autograd.grad(loss, opposite)
    assert torch.isfinite(gradient).all()


def test_probabilities_match_log_probabilities_and_are_float32(space: tuple[int, ...]) -> None:
    z = logits(space)
    torch.testing.assert_close(probabilities(z), log_probabilities(z).exp())
    assert probabilities(z.bfloat16()).dtype == torch.float32


def test_lec_gradient_against_finite_differences(space: tuple[int, ...]) -> None:
    torch.manual_seed(3)

    def draw() -> Tensor:
        z = torch.randn(B, K, *space, dtype=torch.float64)
        return z.log_softmax(1).requires_grad_()

    log_s, log_fp = draw(), draw()
    assert torch.autograd.gradcheck(low_entropy_consistency, (log_s, log_fp))


def test_lec_reaches_both_streams(space: tuple[int, ...]) -> None:
    z_s, z_fp, *_ = streams(space)
    loss = low_entropy_consistency(log_probabilities(z_s), log_probabilities(z_fp))
    assert all((g != 0).any() for g in torch.autograd.grad(loss, (z_s, z_fp)))
