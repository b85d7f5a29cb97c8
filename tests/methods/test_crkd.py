"""CRKD as a whole: the total against its parts computed one stream at a time, switches, pseudo-labels, CutMix."""

import msgspec
import pytest
import torch

from crkd_cli.augment.mix import draw_swap, swap
from crkd_cli.data.batch import Batch
from crkd_cli.losses.dice import dice_loss
from crkd_cli.methods import METHODS
from crkd_cli.methods.crkd import Crkd
from tests.methods.test_contract import batch, calm, task

TERMS = ("pixel", "feature", "semantic", "entropy")


def build(dims: int, **params: float) -> Crkd:
    torch.manual_seed(0)
    method = METHODS["crkd"](task(dims), Crkd.Params(**{"confidence": 0.35, **params}))
    assert isinstance(method, Crkd)
    calm(method)    # so that the streams can be run again by hand
    return method


def run(method: Crkd, data: Batch, step: int = 9) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return method.losses(data, step)


def test_total_is_the_weighted_sum(dims: int) -> None:
    own = {"pixel": 0.5, "feature": 0.3, "semantic": 0.2, "entropy": 0.7, "pseudo": 0.9}
    method = build(dims, **own, warmup=0.1, pseudo_ramp=1.0, start=0.2, ramp=0.5)
    losses = run(method, batch(dims), step=4)
    r, r_pseudo = 2.718281828 ** (-5 * (1 - 2 / 5) ** 2), 2.718281828 ** (-5 * (1 - 3 / 10) ** 2)
    weights = {"labeled": 1, "pseudo": 0.9 * r_pseudo}
    weights |= {"pixel": 0.5 * r, "feature": 0.3 * r, "semantic": 0.2 * r, "entropy": 0.7 * r}
    expected = sum(weight * losses[name].item() for name, weight in weights.items())
    assert losses["total"].item() == pytest.approx(expected, rel=1e-5)


def test_phases_of_a_run() -> None:
    """Labelled images alone, then the pseudo-label, then the distillation, each from its own step on."""
    method = build(2, warmup=0.2, start=0.4)
    seen = {step: {name for name in (*TERMS, "pseudo") if name in run(method, batch(2), step)} for step in (0, 1, 2, 3, 4, 9)}
    assert seen == {0: set(), 1: set(), 2: {"pseudo"}, 3: {"pseudo"}, 4: {*TERMS, "pseudo"}, 9: {*TERMS, "pseudo"}}


@pytest.mark.parametrize("term", TERMS)
def test_every_term_has_a_switch(term: str) -> None:
    full, without = run(build(2), batch(2)), run(build(2, **{term: 0.0}), batch(2))
    assert term in full
    assert term not in without
    assert without["labeled"].item() == full["labeled"].item()


@pytest.mark.parametrize("alignment", [False, True])
def test_streams_and_pseudo_labels_by_hand(dims: int, alignment: bool) -> None:
    """The fused pass gives what the definition gives: teacher, CutMix, three streams, keep mask, pseudo-label loss."""
    method, data = build(dims, drop=0.0, confidence=0.5, alignment=alignment), batch(dims)
    losses = run(method, data, step=3)
    assert data.unlabeled is not None
    torch.manual_seed(5)
    with torch.no_grad():
        p = method.teacher.network(data.unlabeled.weak).softmax(1)    # the student as it was before this step's statistics
    if alignment:    # the first batch: its own shares, labelled and guessed
        wanted, found = data.labeled.label.flatten().bincount() / data.labeled.label.numel(), p.transpose(0, 1).flatten(1).mean(1)
        p = torch.stack([one * ratio for one, ratio in zip(p.unbind(1), wanted / found, strict=True)], dim=1)
        p = p / p.sum(1, keepdim=True)
    partner, box = draw_swap(data.unlabeled.weak.shape, torch.device("cpu"))
    weak, strong, p = (swap(x, partner, box) for x in (data.unlabeled.weak, data.unlabeled.strong[0], p))
    pseudo = p.argmax(1)
    keep = p.amax(1) >= 0.5
    assert 0.1 < keep.float().mean() < 1.0
    assert losses["kept"].item() == pytest.approx(keep.float().mean().item())
    z_l, z_s, z_fp = method.student(torch.cat([data.labeled.image, strong, weak])).split([3, 4, 4])
    labeled = 0.5 * (torch.nn.functional.cross_entropy(z_l, data.labeled.label) + dice_loss(z_l.softmax(1), data.labeled.label))
    assert losses["labeled"].item() == pytest.approx(labeled.item(), rel=1e-4)
    expected = torch.zeros(())
    for z in (z_s, z_fp):
        by_pixel = torch.nn.functional.cross_entropy(z, pseudo, reduction="none")
        expected = expected + 0.25 * (by_pixel[keep].mean() + dice_loss(z.softmax(1), pseudo, keep))
    assert losses["pseudo"].item() == pytest.approx(expected.item(), rel=1e-4)
    for k in (1, 2):
        assert losses[f"share_{k}"].item() == pytest.approx((pseudo == k).float().mean().item())


def test_nothing_kept_gives_no_gradient_from_the_streams() -> None:
    method = build(2, confidence=1.0, semantic=0.0, entropy=0.0)
    losses = run(method, batch(2))
    assert losses["kept"].item() == 0.0
    assert losses["pixel"].item() == losses["feature"].item() == 0.0
    assert losses["total"].item() == pytest.approx(losses["labeled"].item(), rel=1e-4)


def test_teacher_is_the_student_without_an_average_and_lags_with_one() -> None:
    for decay, equal in ((0.0, True), (0.9, False)):
        method = build(2, teacher_decay=decay)
        for step in range(3):
            with torch.no_grad():
                for parameter in method.student.parameters():
                    parameter += 0.01 * (step + 1)
            method.after_step(step)
        pairs = zip(method.student.parameters(), method.teacher.network.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) is equal


def test_semantic_gradient_reaches_features_and_projection(dims: int) -> None:
    method = build(dims, pixel=0, feature=0, entropy=0, pseudo=0, semantic=1.0, confidence=0.0)
    losses = run(method, batch(dims))
    losses["semantic"].backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in method.projection.layers[-1].parameters())
    assert (method.student.decoder.grow[0][0].weight.grad != 0).any()


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"confidence": 1.5}, {"pixel": -1}, {"temperature": 0}, {"unknown": 1}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, Crkd.Params)
