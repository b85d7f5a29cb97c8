"""What holds for every method, in 2D and 3D: finite losses, gradients where due and none where not, state that survives."""

import io

import pytest
import torch

from crkd_cli.config import Model
from crkd_cli.data.batch import Batch, Labeled, Unlabeled
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method, Task

METHOD = pytest.mark.parametrize("name", METHODS.names())


def task(dims: int, classes: int = 3) -> Task:
    return Task(Model(name="unet", widths=(4, 4, 8, 8, 8)), dims, channels=1, classes=classes, steps=10)


def build(name: str, dims: int) -> Method:
    torch.manual_seed(0)
    kind = METHODS[name]
    return kind(task(dims), kind.Params())


def batch(dims: int, views: int = 1) -> Batch:
    torch.manual_seed(1)
    space = (32, 16, 16)[:dims]
    weak = torch.rand(4, 1, *space)
    strong = tuple(weak + 0.1 * torch.randn_like(weak) for _ in range(views))
    return Batch(Labeled(torch.rand(3, 1, *space), torch.randint(3, (3, *space))), Unlabeled(weak, strong))


@METHOD
@pytest.mark.parametrize("step", [0, 9])
def test_losses_are_finite_scalars_and_total_has_a_gradient(name: str, dims: int, step: int) -> None:
    method = build(name, dims)
    losses = method.losses(batch(dims, method.strong_views), step)
    assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values())
    losses["total"].backward()
    gradients = [p.grad for p in method.student.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert not any(p.grad is not None for p in method.parameters() if not p.requires_grad)


@METHOD
def test_a_small_step_lowers_the_loss(name: str, dims: int) -> None:
    method, data = build(name, dims), batch(dims)

    def total() -> torch.Tensor:
        torch.manual_seed(7)
        return method.losses(data, 0)["total"]

    before = total()
    before.backward()
    with torch.no_grad():
        for parameter in method.student.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    assert total().item() < before.item()


@METHOD
def test_state_survives_a_file(name: str, dims: int) -> None:
    method = build(name, dims)
    for step in range(2):
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
