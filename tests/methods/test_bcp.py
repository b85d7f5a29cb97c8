"""BCP: mixed images and their regions by hand, cleaned pseudo-labels against scipy, the teacher's beginning."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from crkd_cli.augment.mix import draw_box
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import require_unlabeled
from crkd_cli.methods.bcp import Bcp, halves
from tests.methods.test_contract import batch, calm, task


def fit(log_p: Tensor, label: Tensor, region: Tensor, epsilon: float, power: int) -> float:
    """½ (CE + Dice over all classes) in the pixels of region, each in float64. power: 2 squared, 1 plain denominators."""
    rows, classes = log_p.detach().double().movedim(1, -1)[region], label[region]
    losses = []
    for k in range(log_p.shape[1]):
        p, t = rows[:, k].exp(), (classes == k).double()
        losses.append(1 - (2 * (p * t).sum() + epsilon) / ((p**power + t).sum() + epsilon))
    cross_entropy = -rows.gather(1, classes.unsqueeze(1)).mean()
    return float(cross_entropy + sum(losses) / len(losses)) / 2


def build(dims: int, **params: float) -> Bcp:
    torch.manual_seed(0)
    method = METHODS["bcp"](task(dims), Bcp.Params(**params))
    assert isinstance(method, Bcp)
    calm(method)
    return method.train()


@pytest.mark.parametrize(("squared", "epsilon"), [(True, 1e-10), (False, 1e-5)])
def test_mixed_images_and_regions_by_hand(dims: int, squared: bool, epsilon: float) -> None:
    method, data = (
        build(dims, pseudo_weight=0.3, squared_dice=squared, dice_smooth=epsilon),
        batch(dims, labeled=4),
    )
    x, y, u = (
        data.labeled.image,
        data.labeled.label,
        require_unlabeled(data.unlabeled).weak,
    )
    torch.manual_seed(5)
    box = draw_box(x.shape[2:], x.device, 2 / 3)
    torch.manual_seed(5)
    losses = method.losses(data, 9)
    guess = method.pseudo_label(u)
    labeled = taught = 0.0
    for start, inside in (
        (0, True),
        (1, False),
    ):  # the box is the unlabeled image's, then the labeled one's
        own = (box == inside).expand(2, *x.shape[2:])  # the unlabeled image's region
        pairs = zip(x[start::2], u[start::2], strict=True)
        mixed = torch.stack([torch.where(box[0] == inside, theirs, mine) for mine, theirs in pairs])
        log_p = method.student(mixed).log_softmax(1)
        labeled += fit(log_p, y[start::2], ~own, epsilon, 1 + squared)
        taught += fit(log_p, guess[start::2], own, epsilon, 1 + squared)
    assert losses["labeled"].item() == pytest.approx(labeled, rel=1e-4)
    assert losses["pseudo"].item() == pytest.approx(taught, rel=1e-4)
    assert losses["total"].item() == pytest.approx(labeled + 0.3 * taught, rel=1e-4)


@pytest.mark.parametrize("by_region", [True, False])
def test_first_labeled_images_alone(dims: int, by_region: bool) -> None:
    method, data = build(dims, warmup=0.5, average_regions=by_region), batch(dims, labeled=4)
    x, y = data.labeled.image, data.labeled.label
    torch.manual_seed(5)
    box = draw_box(x.shape[2:], x.device, 2 / 3)[0]
    torch.manual_seed(5)
    losses = method.losses(data, 4)
    mixed = torch.stack([torch.where(box, x[n + 1], x[n]) for n in (0, 2)])
    label = torch.stack([torch.where(box, y[n + 1], y[n]) for n in (0, 2)])
    log_p, inside = method.student(mixed).log_softmax(1), box.expand_as(label)
    regions = [inside, ~inside] if by_region else [torch.ones_like(inside)]
    expected = sum(fit(log_p, label, region, 1e-10, 2) for region in regions)
    assert losses["total"].item() == pytest.approx(expected, rel=1e-4)
    assert losses.keys() == {"total", "labeled"}
    assert "pseudo" in method.losses(data, 5)


def test_dice_of_every_image_as_released_for_la(dims: int) -> None:
    """Not pooled: the mean of the losses of single images, whose regions are equally large."""
    method = build(dims, batch_dice=False, squared_dice=False, dice_smooth=1e-5)
    label = batch(dims, labeled=4).labeled.label
    log_p = (3 * torch.randn(4, 3, *label.shape[1:])).log_softmax(1)
    region = draw_box(label.shape[1:], label.device, 2 / 3)
    by_image = [
        fit(log_p[[n]], label[[n]], region.expand_as(label[[n]]), 1e-5, 1) for n in range(4)
    ]
    assert method.region_loss(log_p, label, region).item() == pytest.approx(
        sum(by_image) / 4, rel=1e-5
    )


def test_pseudo_label_keeps_the_largest_component_of_every_class(dims: int) -> None:
    method, plain = build(dims), build(dims, largest_component=False)
    weak = require_unlabeled(batch(dims).unlabeled).weak
    raw, cleaned = plain.pseudo_label(weak), method.pseudo_label(weak)
    assert not torch.equal(raw, cleaned)
    for before, after in zip(raw.numpy(), cleaned.numpy(), strict=True):
        for k in (1, 2):
            labels, _ = ndimage.label(before == k, np.ones((3,) * dims))
            sizes = np.bincount(labels.ravel(), minlength=2)[1:]
            assert (after == k).sum() == sizes.max()
            assert len(np.unique(labels[after == k])) == (sizes.max() > 0)


def test_teacher_is_a_copy_until_the_warm_up_ends() -> None:
    method = build(2, warmup=0.5, ema_decay=0.75)
    before = {name: value.clone() for name, value in method.teacher.network.named_parameters()}
    for step in range(7):
        with torch.no_grad():
            for parameter in method.student.parameters():
                parameter += 1.0
        method.after_step(step)
        moved = method.teacher.network.decoder.output.bias - before["decoder.output.bias"]
        # A copy at steps 0–4; then a quarter of the way to the student at each.
        expected = {5: 5.25, 6: 5.6875}.get(step, step + 1.0)
        torch.testing.assert_close(moved, torch.full_like(moved, expected))


def test_halves() -> None:
    """Even and odd samples; the one after the last is the first; fewer are used again."""
    found = [
        [half.tolist() for half in halves(torch.arange(n), count)]
        for n, count in ((4, 2), (3, 2), (1, 2), (2, 3))
    ]
    assert found == [[[0, 2], [1, 3]], [[0, 2], [1, 0]], [[0, 0], [0, 0]], [[0, 0, 0], [1, 1, 1]]]
