"""Every loss term against a slow loop over pixels in float64, by hand where that is obvious, and its gradient's direction."""

import math

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
    """[B, C, *S] → a list of C numbers for every pixel, in float64."""
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
    torch.testing.assert_close(
        dice_loss(p, target, mask), dice_loss(inside, target[mask].unsqueeze(0))
    )


def slow_dice(p: Tensor, target: Tensor, k: int, epsilon: float, power: int) -> float:
    """1 − (2 Σ p·t + ε) / (Σ p^power + Σ t + ε) of class k, pixel by pixel."""
    rows = [
        (row[k], float(t == k)) for row, t in zip(pixels(p), target.flatten().tolist(), strict=True)
    ]
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
    """Sums over the whole batch, or the mean over images, each with a Dice of its own."""
    p, target = logits(space).softmax(1), torch.randint(K, (B, *space))
    pooled = mean([slow_dice(p, target, k, epsilon, power) for k in range(first, K)])
    by_image = [
        slow_dice(p[[n]], target[[n]], k, epsilon, power) for n in range(B) for k in range(first, K)
    ]
    for is_pooled, expected in ((True, pooled), (False, mean(by_image))):
        loss = dice_loss(
            p, target, classes=classes, squared=squared, pooled=is_pooled, epsilon=epsilon
        )
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_pixel_terms_equal_torch(space: tuple[int, ...]) -> None:
    z, target = logits(space), torch.randint(K, (B, *space))
    log_p, log_q = log_probabilities(z), log_probabilities(logits(space))
    torch.testing.assert_close(
        cross_entropy(log_p, target), torch.nn.functional.cross_entropy(z, target, reduction="none")
    )
    expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(divergence(log_p, log_q), expected)
    torch.testing.assert_close(
        entropy(log_p), torch.distributions.Categorical(logits=z.movedim(1, -1)).entropy()
    )


def test_masked_mean_leaves_masked_values_out_even_if_infinite() -> None:
    values, mask = torch.tensor([[1.0, math.inf, 3.0]]), torch.tensor([[True, False, True]])
    assert masked_mean(values, mask).item() == 2.0
    assert masked_mean(values, torch.zeros_like(mask)).item() == 0.0
    with pytest.raises(ValueError, match="differ in shape"):
        masked_mean(values, mask[:, :2])


def streams(space: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return logits(space), logits(space), torch.randint(K, (B, *space)), torch.rand(B, *space) < 0.7


def teachers(z_s: Tensor, z_fp: Tensor, pseudo: Tensor, keep: Tensor) -> list[str | None]:
    """Who teaches at every pixel, by the definition: the stream with the smaller cross entropy, where the pixel is kept."""
    rows = zip(
        pixels(z_s), pixels(z_fp), pseudo.flatten().tolist(), keep.flatten().tolist(), strict=True
    )
    return [
        ("s" if softmax(s)[y] > softmax(fp)[y] else "fp") if kept else None
        for s, fp, y, kept in rows
    ]


def test_cpkd_against_a_loop(space: tuple[int, ...]) -> None:
    z_s, z_fp, pseudo, keep = streams(space)
    rows = list(zip(pixels(z_s), pixels(z_fp), teachers(z_s, z_fp, pseudo, keep), strict=True))
    expected = mean([kl(softmax(s), softmax(fp)) for s, fp, who in rows if who == "s"])
    expected += mean([kl(softmax(fp), softmax(s)) for s, fp, who in rows if who == "fp"])
    log_s, log_fp = log_probabilities(z_s), log_probabilities(z_fp)
    by_s, by_fp = reliability(log_s, log_fp, pseudo, keep)
    assert not (by_s & by_fp).any()
    assert torch.equal(by_s | by_fp, keep)
    assert pixel_distillation(log_s, log_fp, by_s, by_fp).item() == pytest.approx(
        expected / K, abs=1e-6
    )  # as released


def test_cfkd_against_a_loop(space: tuple[int, ...]) -> None:
    z_s, z_fp, pseudo, keep = streams(space)
    f_s, f_fp = logits(space, 5), logits(space, 5)

    def distance(a: list[float], b: list[float]) -> float:
        product = sum(x * y for x, y in zip(a, b, strict=True))
        return 1 - product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    rows = list(zip(pixels(f_s), pixels(f_fp), teachers(z_s, z_fp, pseudo, keep), strict=True))
    expected = mean([distance(s, fp) for s, fp, who in rows if who == "s"])
    expected += mean([distance(s, fp) for s, fp, who in rows if who == "fp"])
    by = reliability(log_probabilities(z_s), log_probabilities(z_fp), pseudo, keep)
    assert feature_distillation(f_s, f_fp, *by).item() == pytest.approx(expected, abs=1e-6)


def test_cfkd_gradient_is_that_of_two_directed_cosines(space: tuple[int, ...]) -> None:
    """Against torch's cosine similarity with the teacher's side detached, one term a direction."""
    z_s, z_fp, pseudo, keep = streams(space)
    f_s, f_fp = logits(space, 5), logits(space, 5)
    by_s, by_fp = reliability(log_probabilities(z_s), log_probabilities(z_fp), pseudo, keep)
    to_fp = 1.0 - torch.nn.functional.cosine_similarity(f_s.detach(), f_fp)
    to_s = 1.0 - torch.nn.functional.cosine_similarity(f_s, f_fp.detach())
    expected = torch.autograd.grad(to_fp[by_s].mean() + to_s[by_fp].mean(), (f_s, f_fp))
    torch.testing.assert_close(
        torch.autograd.grad(feature_distillation(f_s, f_fp, by_s, by_fp), (f_s, f_fp)), expected
    )


@pytest.mark.parametrize("term", ["pixel", "feature"])
def test_the_teacher_gets_no_gradient(term: str, space: tuple[int, ...]) -> None:
    z_s, z_fp, pseudo, keep = streams(space)
    log_s, log_fp = log_probabilities(z_s), log_probabilities(z_fp)
    by_s, by_fp = reliability(log_s, log_fp, pseudo, keep)
    if term == "pixel":
        inputs, loss = (z_s, z_fp), pixel_distillation(log_s, log_fp, by_s, by_fp)
    else:
        inputs = logits(space, 5), logits(space, 5)
        loss = feature_distillation(*inputs, by_s, by_fp)
    to_s, to_fp = (gradient.abs().sum(1) > 0 for gradient in torch.autograd.grad(loss, inputs))
    assert torch.equal(to_s, by_fp)  # s learns where fp teaches, and nowhere else
    assert torch.equal(to_fp, by_s)


def test_distillation_moves_the_pupil_to_the_teacher(space: tuple[int, ...]) -> None:
    z_s, z_fp, *_ = streams(space)
    everywhere, nowhere = (
        torch.ones(B, *space, dtype=torch.bool),
        torch.zeros(B, *space, dtype=torch.bool),
    )

    def loss(fp: Tensor) -> Tensor:
        return pixel_distillation(
            log_probabilities(z_s), log_probabilities(fp), everywhere, nowhere
        )

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


def test_lec_is_0_for_equal_streams_and_finite_for_certain_ones(space: tuple[int, ...]) -> None:
    z = logits(space)
    assert low_entropy_consistency(
        log_probabilities(z), log_probabilities(z)
    ).item() == pytest.approx(0.0, abs=1e-6)
    certain = torch.zeros(B, K, *space)
    certain[:, 0] = 200.0
    other = certain.flip(1).requires_grad_()
    loss = low_entropy_consistency(log_probabilities(certain), log_probabilities(other))
    assert loss.item() == pytest.approx(
        math.log(2), abs=1e-5
    )  # two opposite certainties, equally sure
    (gradient,) = torch.autograd.grad(loss, other)
    assert torch.isfinite(gradient).all()


def test_probabilities_are_those_of_the_logarithms_in_float32(space: tuple[int, ...]) -> None:
    z = logits(space)
    torch.testing.assert_close(probabilities(z), log_probabilities(z).exp())
    assert probabilities(z.bfloat16()).dtype == torch.float32


def test_gradient_of_lec_is_that_of_its_value(space: tuple[int, ...]) -> None:
    """Written out in the code; finite differences in float64 know nothing of that."""
    torch.manual_seed(3)
    log_s, log_fp = (
        torch.randn(B, K, *space, dtype=torch.float64).log_softmax(1).requires_grad_()
        for _ in range(2)
    )
    assert torch.autograd.gradcheck(low_entropy_consistency, (log_s, log_fp))


def test_lec_reaches_both_streams(space: tuple[int, ...]) -> None:
    z_s, z_fp, *_ = streams(space)
    loss = low_entropy_consistency(log_probabilities(z_s), log_probabilities(z_fp))
    assert all((g != 0).any() for g in torch.autograd.grad(loss, (z_s, z_fp)))
