"""CRKD: the total against terms computed one stream at a time, switches, pseudo-labels, CutMix."""

import copy
import math

import msgspec
import pytest
import torch

from crkd_cli.augment.mix import draw_swap, swap
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import dice_loss
from crkd_cli.methods import METHODS
from crkd_cli.methods.crkd import Crkd
from tests.methods.test_contract import batch, make_deterministic, task

TERMS = ("pixel", "feature", "semantic", "entropy")


def build(dims: int, **params: float) -> Crkd:
    torch.manual_seed(0)
    method = METHODS["crkd"](task(dims), Crkd.Params(**{"confidence": 0.35, **params}))
    assert isinstance(method, Crkd)
    make_deterministic(method)  # so that the streams can be computed again
    return method


def run(method: Crkd, data: Batch, step: int = 9) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return method.losses(data, step)


def test_total_is_the_weighted_sum(dims: int) -> None:
    weights = {"pixel": 0.5, "feature": 0.3, "semantic": 0.2, "entropy": 0.7}
    params = {f"{name}_weight": weight for name, weight in weights.items()}
    method = build(dims, **params, pseudo_weight=0.9, rampup=0.8)
    losses = run(method, batch(dims), step=4)
    ramp = math.exp(-5 * (1 - 4 / 8) ** 2)
    expected = losses["labeled"].item() + 0.9 * losses["pseudo"].item()
    expected += ramp * sum(weight * losses[name].item() for name, weight in weights.items())
    assert losses["total"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("term", TERMS)
def test_every_term_has_a_switch(term: str) -> None:
    full, without = run(build(2), batch(2)), run(build(2, **{f"{term}_weight": 0.0}), batch(2))
    assert term in full
    assert term not in without
    assert without["labeled"].item() == full["labeled"].item()


def training_copy(network: torch.nn.Module) -> torch.nn.Module:
    """Copy a network in training mode, in which it normalizes by the batch."""
    return copy.deepcopy(network).train()


@pytest.mark.parametrize("classes", ["all", "foreground"])
def test_streams_and_pseudo_labels_by_hand(dims: int, classes: str) -> None:
    """The single pass computes what the definition says: teacher, CutMix, streams, mask, losses."""
    method = build(dims, feature_dropout=0.0, confidence=0.5, dice_classes=classes)
    data = batch(dims)
    with torch.no_grad():
        for parameter in method.teacher.parameters():  # make it differ from the student
            parameter.mul_(1.1)
    losses = run(method.train(), data, step=3)
    assert data.unlabeled is not None
    with torch.no_grad():
        p = training_copy(method.teacher.network)(data.unlabeled.weak).softmax(1)
    for k in (1, 2):
        share = (p.argmax(1) == k).float().mean().item()
        assert losses[f"share_{k}"].item() == pytest.approx(share)
    torch.manual_seed(5)
    partner, box = draw_swap(data.unlabeled.weak.shape, torch.device("cpu"))
    weak, strong, p = (
        swap(x, partner, box) for x in (data.unlabeled.weak, data.unlabeled.strong[0], p)
    )
    pseudo = p.argmax(1)
    keep = p.amax(1) >= 0.5
    assert 0.1 < keep.float().mean() < 1.0
    assert losses["kept"].item() == pytest.approx(keep.float().mean().item())
    images = torch.cat([data.labeled.image, strong, weak])
    z_l, z_s, z_fp = training_copy(method.student)(images).split([3, 4, 4])
    cross_entropy = torch.nn.functional.cross_entropy(z_l, data.labeled.label)
    dice = dice_loss(z_l.softmax(1), data.labeled.label, classes=classes)
    labeled = 0.5 * (cross_entropy + dice).item()
    assert losses["labeled"].item() == pytest.approx(labeled, rel=1e-4)
    by_stream = [dice_loss(z.softmax(1), pseudo, keep, classes=classes) for z in (z_s, z_fp)]
    assert losses["pseudo"].item() == pytest.approx(sum(by_stream).item() / 2, rel=1e-4)


def test_teacher_normalizes_by_the_batch_in_training_and_tracks_the_statistics(dims: int) -> None:
    """The running statistics move with batch norm's momentum, and with nothing else."""
    method, data = build(dims).train(), batch(dims)
    assert data.unlabeled is not None
    images = data.unlabeled.weak
    batch_norm = torch.nn.modules.batchnorm._BatchNorm
    norm = next(m for m in method.teacher.modules() if isinstance(m, batch_norm))
    convolution = method.teacher.network.down[0][0]
    confidence, _ = method.pseudo_label(images)
    again, _ = method.pseudo_label(images)
    assert torch.equal(confidence, again)  # no dropout
    means = convolution(images).mean((0, *range(2, images.ndim)))
    expected = (0.1 + 0.9 * 0.1) * means
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-6)
    method.after_step(0)
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-6)
    assert method.eval().predictor is method.teacher.network
    assert not torch.allclose(method.pseudo_label(images)[0], confidence, atol=1e-3)


def test_without_confident_pixels_only_the_labeled_loss_remains() -> None:
    method = build(2, confidence=1.0, semantic_weight=0.0, entropy_weight=0.0)
    method.teacher.network.decoder.output.weight.mul_(0.01)  # certain of nothing
    losses = run(method, batch(2))
    assert losses["kept"].item() == 0.0
    assert losses["pixel"].item() == losses["feature"].item() == 0.0
    assert losses["total"].item() == pytest.approx(losses["labeled"].item(), rel=1e-4)


def test_teacher_is_the_student_without_an_average_and_lags_with_one() -> None:
    for decay, equal in ((0.0, True), (0.9, False)):
        method = build(2, ema_decay=decay)
        for step in range(3):
            with torch.no_grad():
                for parameter in method.student.parameters():
                    parameter += 0.01 * (step + 1)
            method.after_step(step)
        pairs = zip(method.student.parameters(), method.teacher.network.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) is equal


def test_semantic_gradient_reaches_features_and_projection(dims: int) -> None:
    others = dict.fromkeys(("pixel_weight", "feature_weight", "entropy_weight", "pseudo_weight"), 0)
    method = build(dims, **others, semantic_weight=1.0, confidence=0.0)
    run(method, batch(dims))["semantic"].backward()
    last = method.projection.layers[-1]
    assert all(p.grad is not None and (p.grad != 0).any() for p in last.parameters())
    assert (method.student.decoder.upsample[0][0].weight.grad != 0).any()


def test_settings_out_of_range_are_refused() -> None:
    for params in ({"confidence": 1.5}, {"pixel_weight": -1}, {"temperature": 0}, {"unknown": 1}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(params, Crkd.Params)
