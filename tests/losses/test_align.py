"""Distribution alignment: worked by hand, and an identity."""

import pytest
import torch

from crkd_cli.losses.align import LATEST, Shares, align


def test_shares_are_moved_towards_those_wanted() -> None:
    """0.9 · 0.5/0.9 : 0.1 · 0.5/0.1 = 0.5 : 0.5, and 0.6 · 0.5/0.9 : 0.4 · 0.5/0.1 = 1/7 : 6/7."""
    p = torch.tensor([[0.9, 0.6], [0.1, 0.4]]).view(1, 2, 1, 2)
    aligned = align(p, torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1]))
    torch.testing.assert_close(aligned.flatten(2)[0], torch.tensor([[0.5, 1 / 7], [0.5, 6 / 7]]))


def test_shares_that_fit_change_nothing(dims: int) -> None:
    p = torch.rand(2, 3, *[4] * dims).softmax(1)
    same = torch.tensor([0.7, 0.2, 0.1])
    torch.testing.assert_close(align(p, same, same), p)


def test_a_class_that_nobody_sees_does_no_harm() -> None:
    p = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    assert align(p, torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])).flatten().tolist() == [1.0, 0.0]


def test_running_mean_counts_all_batches_at_first_and_mostly_the_last_hundred_later(dims: int) -> None:
    shares, seen = Shares(3), torch.rand(300, 2, 3, *[2] * dims).softmax(2)
    for p in seen[:3]:
        shares.follow(p)
    torch.testing.assert_close(shares.mean, by_class(seen[:3]))
    for p in seen[3:]:
        shares.follow(p)
    expected = by_class(seen[:100])
    for p in seen[100:]:
        expected = (1 - LATEST) * expected + LATEST * by_class(p.unsqueeze(0))
    torch.testing.assert_close(shares.mean, expected)
    assert shares.count == pytest.approx(300)


def test_an_answer_that_is_not_finite_does_not_count(dims: int) -> None:
    shares, p = Shares(2), torch.rand(2, 2, *[4] * dims).softmax(1)
    nothing = torch.full_like(p, float("nan"))
    for one in (nothing, p, nothing):
        shares.follow(one)
    torch.testing.assert_close(shares.mean, by_class(p.unsqueeze(0)))
    assert shares.count == 1


def by_class(p: torch.Tensor) -> torch.Tensor:
    """p [N, B, K, *S] → mean of every class [K]."""
    return torch.stack([p[:, :, k].mean() for k in range(p.shape[2])])
