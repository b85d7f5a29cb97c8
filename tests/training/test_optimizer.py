"""The guarded optimizers: their formulas, torch's own without a guard, steps that are not finite, states that survive a file."""

import io

import msgspec
import pytest
import torch

from crkd_cli.config import TrainConfig
from crkd_cli.training.optimizer import GuardedOptimizer

OPTIMIZER = pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw"])


def settings(name: str) -> TrainConfig:
    return msgspec.convert(
        {"steps": 10, "optimizer": name, "momentum": 0.8, "weight_decay": 0.1}, TrainConfig
    )


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 4, bias=False), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)
    )


def loss(method: torch.nn.Module, step: int) -> torch.Tensor:
    x = torch.rand(5, 3, generator=torch.Generator().manual_seed(step))
    return method(x).square().mean()


def step(
    method: torch.nn.Module, optimizer: GuardedOptimizer, number: int, factor: float = 1.0
) -> None:
    optimizer.remember()
    value = factor * loss(method, number)
    value.backward()
    optimizer.step(value, lr=0.1 / (number + 1))


def test_sgd_with_momentum_and_weight_decay_by_hand() -> None:
    """v ← 0.9 v + g + 0.1 w; w ← w − lr v, from v = 0."""
    method = torch.nn.Linear(1, 1, bias=False)
    optimizer = GuardedOptimizer(method, TrainConfig(steps=1, momentum=0.9, weight_decay=0.1))
    weight, v = method.weight.item(), 0.0
    for lr, factor in ((0.5, 1.0), (0.25, -2.0), (0.1, 3.0)):
        value = factor * method(torch.ones(1, 1)).sum()
        value.backward()
        norm = optimizer.step(value, lr)
        assert norm.item() == pytest.approx(abs(factor))
        v = 0.9 * v + factor + 0.1 * weight
        weight -= lr * v
        assert method.weight.item() == pytest.approx(weight, rel=1e-5)


@OPTIMIZER
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been(name: str) -> None:
    """Steps 0, NaN, 1, 2, NaN, 3 end where torch's own optimizer does after 0, 1, 2, 3."""
    guarded, plain = network(), network()
    optimizer = GuardedOptimizer(guarded, settings(name))
    for number, factor in (
        (0, float("nan")),
        (0, 1.0),
        (1, 1.0),
        (2, float("inf")),
        (2, 1.0),
        (3, 1.0),
    ):
        step(guarded, optimizer, number, factor)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.SGD
    own = (
        {"betas": (0.8, 0.999)}
        if name == "adamw"
        else {"momentum": 0.8, "nesterov": name == "nesterov"}
    )
    reference = kind(plain.parameters(), lr=0.0, weight_decay=0.1, **own)
    for number in range(4):
        reference.zero_grad()
        loss(plain, number).backward()
        reference.param_groups[0]["lr"] = 0.1 / (number + 1)
        reference.step()
    for (key, one), two in zip(
        guarded.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, two, msg=key)
    assert (optimizer.skipped(), optimizer.worst_streak()) == (2, 1)


@OPTIMIZER
def test_state_survives_a_file(name: str) -> None:
    whole, parts = network(), network()
    optimizer, first = (
        GuardedOptimizer(whole, settings(name)),
        GuardedOptimizer(parts, settings(name)),
    )
    for number in range(3):
        step(whole, optimizer, number)
        step(parts, first, number)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = GuardedOptimizer(parts, settings(name))
    second.load_state_dict(torch.load(file, weights_only=True))
    for number in range(3, 6):
        step(whole, optimizer, number)
        step(parts, second, number)
    assert all(
        torch.equal(one, two)
        for one, two in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True)
    )


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="needs a momentum"):
        msgspec.convert({"steps": 1, "optimizer": "nesterov", "momentum": 0.0}, TrainConfig)
