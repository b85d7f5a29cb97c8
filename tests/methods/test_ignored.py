"""Ignored pixels of the labels (class number K) count in no loss of any method."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crkd_cli.augment.mix import draw_box
from crkd_cli.data.batch import Batch, Labeled
from crkd_cli.losses.dice import dice_loss
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method
from crkd_cli.methods.bcp import BOX_SIDE
from crkd_cli.models.networks.base import Decoder
from crkd_cli.training.graph_safety import find_obstacle
from tests.methods.test_contract import (
    as_scalar,
    batch,
    losses_at,
    make_deterministic,
    task,
)

K = 3
LAST = 9  # the last step: every term counts
in_2d_and_3d = pytest.mark.parametrize(
    "dims", [2, pytest.param(3, marks=pytest.mark.slow)], indirect=True
)


def fast(*names: str, without: str = "") -> list[Any]:
    """All methods; those that are not named are slow."""
    slow = pytest.mark.slow
    methods = [name for name in METHODS.names() if name != without]
    return [name if name in names else pytest.param(name, marks=slow) for name in methods]


TERMS = ("labeled", "deep")  # those that compare with labels alone; if missing, "total" does


def build(name: str, dims: int, **params: object) -> Method:
    """Build a method that predicts every image by itself."""
    torch.manual_seed(0)
    method_class = METHODS[name]
    ignoring = replace(task(dims), has_ignored=True)
    method = method_class(ignoring, method_class.Params(**params))
    make_deterministic(method)
    return method.eval()


def ignore(data: Batch, region: tuple[slice, ...]) -> Batch:
    """Ignore the pixels in `region` of the labels."""
    label = data.labeled.label.clone()
    label[region] = K
    return replace(data, labeled=replace(data.labeled, label=label))


def labeled_loss(losses: dict[str, Tensor]) -> Tensor:
    terms = [losses[name] for name in TERMS if name in losses]
    return torch.stack(terms or [losses["total"]]).sum()


@contextmanager
def recorded_logits(method: Method) -> Iterator[list[Tensor]]:
    """Collect the logits of all decoders and side outputs while they train."""
    outputs: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        if logits.requires_grad:
            outputs.append(logits)

    layers = [module.output for module in method.modules() if isinstance(module, Decoder)]
    layers += getattr(method, "side", [])
    hooks = [layer.register_forward_hook(record) for layer in layers]
    yield outputs
    for hook in hooks:
        hook.remove()


@in_2d_and_3d
@pytest.mark.parametrize("name", fast("supervised", "bcp", "crkd", "lefed", "mlrpl"))
def test_ignored_pixels_get_no_gradient_from_labels(name: str, dims: int) -> None:
    method = build(name, dims)
    region = (slice(None), slice(0, 16))
    torch.manual_seed(3)
    with recorded_logits(method) as outputs:
        loss = labeled_loss(losses_at(method, ignore(batch(dims), region), LAST))
    gradients = torch.autograd.grad(loss, outputs, allow_unused=True)
    reached = [gradient.abs().sum(1) for gradient in gradients if gradient is not None]
    assert reached
    for gradient in reached:
        assert not gradient[region].any()
        assert gradient.any()


@in_2d_and_3d
@pytest.mark.parametrize("name", fast("lefed", "mlrpl", without="bcp"))  # it mixes images
def test_ignored_images_are_as_if_they_were_absent(name: str, dims: int) -> None:
    params = {"cross_entropy_weight": 1.0} if name == "lefed" else {}
    data = batch(dims)
    first = Labeled(data.labeled.image[:1], data.labeled.label[:1])
    partly_ignored = ignore(data, (slice(1, None),))

    def loss(data: Batch) -> float:
        return labeled_loss(losses_at(build(name, dims, **params), data, LAST)).item()

    without_others = replace(data, labeled=first)
    assert loss(partly_ignored) == pytest.approx(loss(without_others), rel=1e-5)


def slow_dice(p: Tensor, label: Tensor, squared: bool, epsilon: float = 1e-5) -> Tensor:
    """Compute the Dice loss of p [B, K, *S] from the pixels of label [B, *S] below K alone."""
    rows, truth = p.movedim(1, -1)[label < K], label[label < K]
    losses = []
    for k in range(K):
        x, t = rows[:, k], (truth == k).to(p.dtype)
        size = (x.square() if squared else x).sum() + t.sum()
        losses.append(1 - (2 * (x * t).sum() + epsilon) / (size + epsilon))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_supervised_loss_is_that_of_the_other_pixels(
    dims: int, squared: bool, pooled: bool, masked: bool
) -> None:
    """Cross entropy as torch computes it with ignore_index, and Dice over rows of pixels."""
    torch.manual_seed(dims)
    space = (5, 4, 3)[:dims]
    z = torch.randn(2, K, *space, dtype=torch.float64)
    label = torch.randint(K + 1, (2, *space))
    mask = torch.rand(2, *space) < 0.7 if masked else None
    dice = partial(dice_loss, squared=squared, pooled=pooled)
    loss = build("supervised", dims).supervised_loss(z.log_softmax(1), label, mask, dice=dice)

    visible = label if mask is None else torch.where(mask, label, K)
    cross_entropy = nn.functional.cross_entropy(z, visible, ignore_index=K)
    p = z.softmax(1)
    if pooled:
        expected_dice = slow_dice(p, visible, squared)
    else:
        by_image = [slow_dice(p[[n]], visible[[n]], squared) for n in range(2)]
        expected_dice = torch.stack(by_image).mean()
    expected = 0.5 * (cross_entropy + expected_dice)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_bcp_has_no_labeled_loss_where_all_is_ignored() -> None:
    data = ignore(batch(2), (slice(None),))
    assert losses_at(build("bcp", 2), data, LAST)["labeled"].item() == 0.0


def test_bcp_pastes_ignored_pixels() -> None:
    """The loss of its warm-up is that of the mixed label, whose ignored pixels are pasted too."""
    method, data = build("bcp", 2, average_regions=False), batch(2, labeled=4)
    ignored = torch.rand(data.labeled.label.shape) < 0.3
    label = torch.where(ignored, K, data.labeled.label)
    data = replace(data, labeled=replace(data.labeled, label=label))
    torch.manual_seed(5)
    with recorded_logits(method) as outputs:
        loss = losses_at(method, data, 0)["labeled"]
    (z,) = outputs

    torch.manual_seed(5)
    box = draw_box(label.shape[1:], label.device, BOX_SIDE)
    mixed = torch.where(box, label[1::2], label[::2])
    cross_entropy = nn.functional.cross_entropy(z, mixed, ignore_index=K)
    dice = slow_dice(z.softmax(1), mixed, squared=True, epsilon=1e-10)
    assert loss.item() == pytest.approx(0.5 * (cross_entropy + dice).item(), rel=1e-5)


@pytest.mark.parametrize("true_positives", [True, False])
def test_ignored_pixels_are_no_anchors(dims: int, true_positives: bool) -> None:
    method = build("crkd", dims, true_positive_anchors=true_positives)
    data = ignore(batch(dims), (slice(None), slice(0, 16)))
    torch.manual_seed(4)
    label = data.labeled.label
    features = torch.randn(len(label), 5, *label.shape[1:], requires_grad=True)
    log_p = torch.randn(len(label), K, *label.shape[1:]).log_softmax(1)
    samples = method.sample_labeled(features, log_p, label)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(samples.features.square().sum(), features)
    used = gradient.abs().sum(1) > 0
    assert used.any()
    assert not used[label == K].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS.names())
def test_ignoring_can_be_captured_as_a_cuda_graph(name: str) -> None:
    # Components of a mask are found by another algorithm on a GPU.
    params = {"largest_component": False} if name == "bcp" else {}
    method = build(name, 2, **params)
    method.phase = method.phase_at(LAST)
    data = ignore(batch(2), (slice(None), slice(0, 16)))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=False)
    assert find_obstacle(method, data, as_scalar(LAST), autocast) is None
