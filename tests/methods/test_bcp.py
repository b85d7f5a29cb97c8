"""BCP: mixed images and regions by hand, cleaned pseudo-labels against SciPy, the warm-up."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from crkd_cli.augment.mix import draw_box
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import require_unlabeled
from crkd_cli.methods.bcp import Bcp, halves
from tests.methods.test_contract import batch, losses_at, make_deterministic, task


def slow_loss(log_p: Tensor, label: Tensor, region: Tensor, epsilon: float, power: int) -> float:
    """Compute ½ (CE + Dice over all classes) of the pixels in region, in float64.

    `power` of p in the denominator of Dice: 2 for the squared form, 1 for the plain one.
    """
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
    make_deterministic(method)
    return method.train()


@pytest.mark.parametrize(("squared", "epsilon"), [(True, 1e-10), (False, 1e-5)])
def test_mixed_images_and_regions_by_hand(dims: int, squared: bool, epsilon: float) -> None:
    method = build(dims, pseudo_weight=0.3, squared_dice=squared, dice_smooth=epsilon)
    data = batch(dims, labeled=4)
    image, label = data.labeled.image, data.labeled.label
    weak = require_unlabeled(data.unlabeled).weak
    torch.manual_seed(5)
    box = draw_box(image.shape[2:], image.device, 2 / 3)
    torch.manual_seed(5)
    losses = losses_at(method, data, 9)

    pseudo_label = method.pseudo_label(weak)
    labeled = pseudo = 0.0
    # The box is the unlabeled image's in the even samples, the labeled image's in the odd ones.
    for start, unlabeled_box in ((0, box), (1, ~box)):
        pairs = zip(image[start::2], weak[start::2], strict=True)
        mixed = torch.stack([torch.where(unlabeled_box[0], u, x) for x, u in pairs])
        log_p = method.student(mixed).log_softmax(1)
        region = unlabeled_box.expand(2, *image.shape[2:])
        labeled += slow_loss(log_p, label[start::2], ~region, epsilon, 1 + squared)
        pseudo += slow_loss(log_p, pseudo_label[start::2], region, epsilon, 1 + squared)
    assert losses["labeled"].item() == pytest.approx(labeled, rel=1e-4)
    assert losses["pseudo"].item() == pytest.approx(pseudo, rel=1e-4)
    assert losses["total"].item() == pytest.approx(labeled + 0.3 * pseudo, rel=1e-4)


@pytest.mark.parametrize("average_regions", [True, False])
def test_warmup_mixes_labeled_images(dims: int, average_regions: bool) -> None:
    method = build(dims, warmup=0.5, average_regions=average_regions)
    data = batch(dims, labeled=4)
    image, label = data.labeled.image, data.labeled.label
    torch.manual_seed(5)
    box = draw_box(image.shape[2:], image.device, 2 / 3)[0]
    torch.manual_seed(5)
    losses = losses_at(method, data, 4)
    mixed_image = torch.stack([torch.where(box, image[n + 1], image[n]) for n in (0, 2)])
    mixed_label = torch.stack([torch.where(box, label[n + 1], label[n]) for n in (0, 2)])
    log_p, inside = method.student(mixed_image).log_softmax(1), box.expand_as(mixed_label)
    regions = [inside, ~inside] if average_regions else [torch.ones_like(inside)]
    expected = sum(slow_loss(log_p, mixed_label, region, 1e-10, 2) for region in regions)
    assert losses["total"].item() == pytest.approx(expected, rel=1e-4)
    assert losses.keys() == {"total", "labeled"}
    assert "pseudo" in losses_at(method, data, 5)


def test_dice_per_image_as_released_for_la(dims: int) -> None:
    """The mean of the losses of single images, whose regions are equally large."""
    method = build(dims, batch_dice=False, squared_dice=False, dice_smooth=1e-5)
    label = batch(dims, labeled=4).labeled.label
    log_p = (3 * torch.randn(4, 3, *label.shape[1:])).log_softmax(1)
    box = draw_box(label.shape[1:], label.device, 2 / 3)
    region = box.expand_as(label[:1])
    by_image = [slow_loss(log_p[[n]], label[[n]], region, 1e-5, 1) for n in range(4)]
    loss = method.region_loss(log_p, label, box).item()
    assert loss == pytest.approx(sum(by_image) / 4, rel=1e-5)


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


def test_teacher_is_a_copy_until_the_warmup_ends() -> None:
    method = build(2, warmup=0.5, ema_decay=0.75)
    before = {name: value.clone() for name, value in method.teacher.network.named_parameters()}
    for step in range(7):
        with torch.no_grad():
            for parameter in method.student.parameters():
                parameter += 1.0
        method.after_step(step)
        moved = method.teacher.network.decoder.output.bias - before["decoder.output.bias"]
        # A copy at steps 0–4; after that, each step covers a quarter of the way to the student.
        expected = {5: 5.25, 6: 5.6875}.get(step, step + 1.0)
        torch.testing.assert_close(moved, torch.full_like(moved, expected))


@pytest.mark.parametrize(
    ("length", "count", "even", "odd"),
    [
        (4, 2, [0, 2], [1, 3]),
        (3, 2, [0, 2], [1, 0]),
        (1, 2, [0, 0], [0, 0]),
        (2, 3, [0, 0, 0], [1, 1, 1]),
    ],
)
def test_halves(length: int, count: int, even: list[int], odd: list[int]) -> None:
    """The sample after the last is the first; if there are too few, they repeat."""
    parts = halves(torch.arange(length), count)
    assert [part.tolist() for part in parts] == [even, odd]
