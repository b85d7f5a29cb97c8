"""What holds for every method, in 2D and 3D: finite losses, gradients where due and none where not, state that survives."""

import io
import os
from pathlib import Path

import pytest
import torch

from crkd_cli.config import ModelConfig, dump, load_config, parse
from crkd_cli.data.batch import Batch, Labeled, Unlabeled
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method, Task
from crkd_cli.models.blocks import Dropout
from crkd_cli.models.networks.base import Decoder
from crkd_cli.paths import packaged_folder
from crkd_cli.training.plan import flatten_keys

OWN = os.environ.get("CRKD_METHOD")  # a user's file, see docs/adding-a-method.md
METHOD = pytest.mark.parametrize("name", [METHODS.add(Path(OWN))] if OWN else METHODS.names())


def task(dims: int, classes: int = 3, steps: int = 10) -> Task:
    return Task(
        ModelConfig(name="unet", widths=(4, 4, 8, 8, 8)),
        dims,
        channels=1,
        classes=classes,
        steps=steps,
    )


def build(name: str, dims: int) -> Method:
    torch.manual_seed(0)
    kind = METHODS[name]
    return kind(task(dims), kind.Params())


def batch(dims: int, views: int = 2, labeled: int = 3) -> Batch:
    torch.manual_seed(1)
    space = (32, 16, 16)[:dims]

    def unlabeled() -> Unlabeled:
        weak = torch.rand(4, 1, *space)
        return Unlabeled(weak, tuple(weak + 0.1 * torch.randn_like(weak) for _ in range(views)))

    first = unlabeled()
    own = Labeled(torch.rand(labeled, 1, *space), torch.randint(3, (labeled, *space)))
    return Batch(own, first, unlabeled())


def calm(method: Method) -> None:
    """No chance in the networks, and answers that differ: an untrained network is unsure everywhere."""
    for module in method.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    with torch.no_grad():
        for decoder in [module for module in method.modules() if isinstance(module, Decoder)]:
            for parameter in decoder.output.parameters():
                parameter *= 30


@METHOD
@pytest.mark.parametrize("step", [0, 9])
def test_losses_are_finite_scalars_and_total_has_a_gradient(
    name: str, dims: int, step: int
) -> None:
    method = build(name, dims)
    losses = method.losses(batch(dims), step)
    assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values())
    losses["total"].backward()
    gradients = [p.grad for p in method.student.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert not any(p.grad is not None for p in method.parameters() if not p.requires_grad)
    if step == 9:  # late in a run all that is trained has a gradient
        assert all(
            p.grad is not None and torch.isfinite(p.grad).all()
            for p in method.parameters()
            if p.requires_grad
        )


@METHOD
def test_it_uses_no_more_than_it_asks_for(name: str, dims: int) -> None:
    """Without the views and the streams that it does not ask for, nothing changes."""
    kind, full = METHODS[name], batch(dims)
    streams = [
        Unlabeled(one.weak, one.strong[: kind.strong_views])
        for one in (full.unlabeled, full.partners)
        if one
    ]
    totals = []
    for given in (full, Batch(full.labeled, *streams[: kind.unlabeled_streams])):
        method = build(name, dims)
        torch.manual_seed(3)
        totals.append(method.losses(given, 9)["total"])
    assert torch.equal(*totals)


@METHOD
def test_published_settings_are_understood(name: str) -> None:
    for dataset, settings in METHODS[name].author_settings.items():
        sets = [f"method={name}", *(f"{key}={value}" for key, value in settings.items())]
        config = load_config(packaged_folder("configs") / f"{dataset}.yaml", sets)
        params = dump(parse(config.methods.get(name, {}), METHODS[name].Params, name))
        found = flatten_keys({**dump(config), "methods": {name: params}})
        for key, value in settings.items():
            there = found[key]
            assert there == pytest.approx(tuple(value) if isinstance(value, list) else value), key


@METHOD
def test_a_small_step_lowers_the_loss(name: str, dims: int) -> None:
    method, moved, data = build(name, dims), build(name, dims), batch(dims)

    def total(one: Method) -> torch.Tensor:
        torch.manual_seed(7)
        return one.losses(data, 0)["total"]

    before = total(method)
    before.backward()
    with torch.no_grad():
        for parameter, learned in zip(
            moved.student.parameters(), method.student.parameters(), strict=True
        ):
            if learned.grad is not None:
                parameter -= 1e-3 * learned.grad
    assert total(moved).item() < before.item()


@METHOD
def test_state_survives_a_file(name: str, dims: int) -> None:
    method = build(name, dims)
    for step in range(2):
        for _ in range(method.updates):
            method.losses(batch(dims), step)["total"].backward()
            with torch.no_grad():
                for parameter in method.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.01 * parameter.grad
                        parameter.grad = None
        method.after_step(step)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    other = build(name, dims)
    other.load_state_dict(torch.load(file, weights_only=True))
    results = []
    for one in (method, other):
        torch.manual_seed(3)
        results.append(one.losses(batch(dims), 2)["total"])
    assert torch.equal(*results)
    x = torch.rand(1, 1, *[16] * dims)
    assert torch.equal(method.eval().predictor(x), other.eval().predictor(x))
