"""What holds for every method, in 2D and 3D.

Losses are finite, gradients reach what is trained and nothing else, and the state survives a file.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from crkd_cli.config import Frame, ModelConfig, build_config, dump, parse, read_yaml
from crkd_cli.data.batch import Batch, Labeled, Unlabeled
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method, Task
from crkd_cli.models.blocks import Dropout
from crkd_cli.models.networks.base import Decoder
from crkd_cli.paths import packaged_folder
from crkd_cli.training.plan import flatten_keys

USER_FILE = os.environ.get("CRKD_METHOD")  # see docs/adding-a-method.md
NAMES = [METHODS.add(Path(USER_FILE))] if USER_FILE else METHODS.names()
every_method = pytest.mark.parametrize("name", NAMES)


def task(dims: int, classes: int = 3, steps: int = 10, **settings: Any) -> Task:
    model = ModelConfig(name=settings.pop("model", "unet"), widths=(4, 4, 8, 8, 8))
    channels = settings.pop("channels", 1)
    return Task(model, dims, channels=channels, classes=classes, steps=steps, **settings)


def build(name: str, dims: int, **settings: Any) -> Method:
    torch.manual_seed(0)
    method_class = METHODS[name]
    return method_class(task(dims, **settings), method_class.Params())


def batch(
    dims: int,
    views: int = 2,
    labeled: int = 3,
    size: Sequence[int] = (32, 16, 16),
    channels: int = 1,
) -> Batch:
    torch.manual_seed(1)
    space = size[:dims]

    def draw_unlabeled() -> Unlabeled:
        weak = torch.rand(4, channels, *space)
        return Unlabeled(weak, tuple(weak + 0.1 * torch.randn_like(weak) for _ in range(views)))

    unlabeled = draw_unlabeled()
    labels = Labeled(torch.rand(labeled, channels, *space), torch.randint(3, (labeled, *space)))
    return Batch(labels, unlabeled, draw_unlabeled())


def losses_at(method: Method, data: Batch, step: int) -> dict[str, torch.Tensor]:
    """Compute the losses as the training loop does."""
    method.phase = method.phase_at(step)
    return method.losses(data, as_scalar(step))


def as_scalar(step: int) -> torch.Tensor:
    return torch.tensor(step, dtype=torch.float64)


def make_deterministic(method: Method) -> None:
    """Switch dropout off and make the predictions distinct.

    An untrained network is uncertain everywhere.
    """
    for module in method.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    decoders = [module for module in method.modules() if isinstance(module, Decoder)]
    with torch.no_grad():
        for decoder in decoders:
            for parameter in decoder.output.parameters():
                parameter *= 30


@every_method
@pytest.mark.parametrize("step", [0, 9])
def test_losses_are_finite_scalars_and_total_has_a_gradient(
    name: str, dims: int, step: int
) -> None:
    method = build(name, dims)
    losses = losses_at(method, batch(dims), step)
    assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values())
    losses["total"].backward()
    assert all(has_finite_gradient(p) for p in method.student.parameters())
    assert not any(p.grad is not None for p in method.parameters() if not p.requires_grad)
    if step == 9:  # late in a run, everything that is trained has a gradient
        assert all(has_finite_gradient(p) for p in method.parameters() if p.requires_grad)


@every_method
@pytest.mark.parametrize(("model", "size"), [("unet", (20, 16)), ("vnet", (4, 8, 16))])
def test_sides_that_are_halved_less_often(name: str, model: str, size: tuple[int, ...]) -> None:
    dims, strides = len(size), Frame(patch=size).strides
    method = build(name, dims, model=model, strides=strides)
    for _ in range(method.updates):  # LeFeD feeds back from one to the next
        losses = losses_at(method, batch(dims, size=size), 9)
    assert all(torch.isfinite(value) for value in losses.values())
    losses["total"].backward()
    assert all(has_finite_gradient(p) for p in method.parameters() if p.requires_grad)
    assert method.eval().predictor(torch.rand(1, 1, *size)).shape == (1, 3, *size)


@pytest.mark.slow
@every_method
def test_color_images_with_a_pretrained_encoder(name: str) -> None:
    method = build(name, 2, model="efficientnet_lite0", channels=3)
    for step in (0, 9):
        for _ in range(method.updates):
            losses = losses_at(method, batch(2, channels=3), step)
        method.after_step(as_scalar(step))
    losses["total"].backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(has_finite_gradient(p) for p in method.parameters() if p.requires_grad)
    assert method.eval().predictor(torch.rand(1, 3, 32, 16)).shape == (1, 3, 32, 16)


def has_finite_gradient(parameter: torch.Tensor) -> bool:
    return parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())


@every_method
def test_a_method_uses_no_more_data_than_it_asks_for(name: str, dims: int) -> None:
    """Without the views and streams that it does not ask for, nothing changes."""
    method_class, full = METHODS[name], batch(dims)
    streams = [
        Unlabeled(stream.weak, stream.strong[: method_class.strong_views])
        for stream in (full.unlabeled, full.partners)
        if stream
    ]
    reduced = Batch(full.labeled, *streams[: method_class.unlabeled_streams])
    totals = []
    for data in (full, reduced):
        method = build(name, dims)
        torch.manual_seed(3)
        totals.append(losses_at(method, data, 9)["total"])
    assert torch.equal(*totals)


@every_method
def test_author_settings_are_valid(name: str) -> None:
    for dataset, settings in METHODS[name].author_settings.items():
        sets = [f"method={name}", *(f"{key}={value}" for key, value in settings.items())]
        file = packaged_folder("configs") / f"{dataset}.yaml"
        config = build_config(read_yaml(file), file, sets)
        params = dump(parse(config.methods.get(name, {}), METHODS[name].Params, name))
        parsed = flatten_keys({**dump(config), "methods": {name: params}})
        for key, value in settings.items():
            expected = tuple(value) if isinstance(value, list) else value
            assert parsed[key] == pytest.approx(expected), key


@every_method
def test_a_small_step_lowers_the_loss(name: str, dims: int) -> None:
    method, moved, data = build(name, dims), build(name, dims), batch(dims)

    def total(method: Method) -> torch.Tensor:
        torch.manual_seed(7)
        return losses_at(method, data, 0)["total"]

    before = total(method)
    before.backward()
    pairs = zip(moved.student.parameters(), method.student.parameters(), strict=True)
    with torch.no_grad():
        for parameter, original in pairs:
            if original.grad is not None:
                parameter -= 1e-3 * original.grad
    assert total(moved).item() < before.item()


@every_method
def test_state_survives_a_file(name: str, dims: int) -> None:
    method = build(name, dims)
    for step in range(2):
        for _ in range(method.updates):
            losses_at(method, batch(dims), step)["total"].backward()
            descend(method)
        method.after_step(as_scalar(step))
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    loaded = build(name, dims)
    loaded.load_state_dict(torch.load(file, weights_only=True))

    totals = []
    for each in (method, loaded):
        torch.manual_seed(3)
        totals.append(losses_at(each, batch(dims), 2)["total"])
    assert torch.equal(*totals)
    x = torch.rand(1, 1, *[16] * dims)
    assert torch.equal(method.eval().predictor(x), loaded.eval().predictor(x))


@torch.no_grad()
def descend(method: Method) -> None:
    """Take a gradient step and clear the gradients."""
    for parameter in method.parameters():
        if parameter.grad is not None:
            parameter -= 0.01 * parameter.grad
            parameter.grad = None
