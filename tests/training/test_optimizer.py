"""The guarded optimizers: against formulas, torch's own, skipped steps, and a saved state."""

import io
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor, nn

from crkd_cli.config import TrainConfig
from crkd_cli.training.optimizer import GuardedOptimizer
from tests.training.helpers import Planner, assert_equal, train_arguments

OPTIMIZER = pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw"])


def settings(name: str) -> TrainConfig:
    tree = {"steps": 10, "optimizer": name, "momentum": 0.8, "weight_decay": 0.1}
    return msgspec.convert(tree, TrainConfig)


def build_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 1))


def loss(network: nn.Module, step: int) -> Tensor:
    x = torch.rand(5, 3, generator=torch.Generator().manual_seed(step))
    return network(x).square().mean()


def learning_rate(step: int) -> float:
    return 0.1 / (step + 1)


def train_step(
    network: nn.Module, optimizer: GuardedOptimizer, step: int, factor: float = 1.0
) -> None:
    """Train on `factor` times the loss."""
    optimizer.remember()
    value = factor * loss(network, step)
    value.backward()
    optimizer.lr.fill_(learning_rate(step))
    optimizer.step(value)


def build_torch_optimizer(name: str, network: nn.Module) -> torch.optim.Optimizer:
    parameters = network.parameters()
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.1, betas=(0.8, 0.999))
    nesterov = name == "nesterov"
    return torch.optim.SGD(parameters, 0.0, momentum=0.8, weight_decay=0.1, nesterov=nesterov)


def test_sgd_with_momentum_and_weight_decay_by_hand() -> None:
    """v ← 0.9 v + g + 0.1 w; w ← w − lr v, from v = 0."""
    network = nn.Linear(1, 1, bias=False)
    optimizer = GuardedOptimizer(network, TrainConfig(steps=1, momentum=0.9, weight_decay=0.1))
    weight, v = network.weight.item(), 0.0
    for lr, factor in ((0.5, 1.0), (0.25, -2.0), (0.1, 3.0)):
        value = factor * network(torch.ones(1, 1)).sum()
        value.backward()
        optimizer.lr.fill_(lr)
        norm = optimizer.step(value)
        assert norm.item() == pytest.approx(abs(factor))
        v = 0.9 * v + factor + 0.1 * weight
        weight -= lr * v
        assert network.weight.item() == pytest.approx(weight, rel=1e-5)


@OPTIMIZER
def test_a_step_that_is_not_finite_leaves_no_trace(name: str) -> None:
    """Steps 0, 1, 2, 3 with NaN and infinity in between equal torch's 0, 1, 2, 3."""
    guarded, plain = build_network(), build_network()
    optimizer = GuardedOptimizer(guarded, settings(name))
    nan, inf = float("nan"), float("inf")
    for step, factor in ((0, nan), (0, 1.0), (1, 1.0), (2, inf), (2, 1.0), (3, 1.0)):
        train_step(guarded, optimizer, step, factor)

    reference = build_torch_optimizer(name, plain)
    for step in range(4):
        reference.zero_grad()
        loss(plain, step).backward()
        reference.param_groups[0]["lr"] = learning_rate(step)
        reference.step()
    expected = plain.state_dict()
    for key, value in guarded.state_dict().items():
        torch.testing.assert_close(value, expected[key], msg=key)
    assert (optimizer.skipped(), optimizer.worst_streak()) == (2, 1)


def test_buffers_stay_tensors_of_their_own() -> None:
    """A copy or a checkpoint of a network must not contain the buffers of the whole method."""
    method = nn.ModuleDict({"student": build_network(), "teacher": build_network()})
    optimizer = GuardedOptimizer(method, settings("sgd"))
    train_step(method["student"], optimizer, 0)
    for buffer in method.buffers():
        assert buffer.untyped_storage().nbytes() == buffer.nbytes


@OPTIMIZER
def test_state_survives_a_file(name: str) -> None:
    whole, parts = build_network(), build_network()
    whole_optimizer = GuardedOptimizer(whole, settings(name))
    parts_optimizer = GuardedOptimizer(parts, settings(name))
    for step in range(3):
        train_step(whole, whole_optimizer, step)
        train_step(parts, parts_optimizer, step)
    file = io.BytesIO()
    torch.save(parts_optimizer.state_dict(), file)
    file.seek(0)
    resumed_optimizer = GuardedOptimizer(parts, settings(name))
    resumed_optimizer.load_state_dict(torch.load(file, weights_only=True))
    for step in range(3, 6):
        train_step(whole, whole_optimizer, step)
        train_step(parts, resumed_optimizer, step)
    assert_equal(parts.state_dict(), whole.state_dict())


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="needs a momentum"):
        msgspec.convert({"steps": 1, "optimizer": "nesterov", "momentum": 0.0}, TrainConfig)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2], indirect=True)
def test_the_compiler_of_torch_is_not_loaded(tiny: Planner, tmp_path: Path) -> None:
    """It takes a second and 70 MB. The process is a new one, since others may have loaded it."""
    tiny()
    commands = [
        train_arguments(tmp_path, "train.deterministic=true", out="sgd"),
        train_arguments(tmp_path, "train.optimizer=adamw", out="adamw"),
        ["evaluate", str(tmp_path / "sgd"), "--data-root", str(tmp_path / "data")],
    ]
    program = f"""
import sys
from crkd_cli.cli import main
for arguments in {commands!r}:
    sys.argv = ["crkd", *arguments, "--quiet"]
    try:
        main()
    except SystemExit as end:
        print(end.code, {{"torch._dynamo", "torch._inductor"}} & set(sys.modules))
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.count("0 set()") == len(commands), result.stdout + result.stderr
