"""AD-MT: losses by hand, the rule for conflicts, periods, and which teacher moves when."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from crkd_cli.augment.mix import draw_cutmix
from crkd_cli.config import Frame
from crkd_cli.methods import METHODS
from crkd_cli.methods.ad_mt import CUTMIX, INTENSITY, AdMt, overrule
from crkd_cli.methods.base import PseudoLabel, require_unlabeled
from tests.methods.test_contract import (
    as_scalar,
    batch,
    build,
    descend,
    losses_at,
    make_deterministic,
    task,
)

CONFIDENCE = 0.6
SMALL = (8, 8, 8)  # pixels are computed one by one


def build_different(dims: int, pseudo_loss: str) -> AdMt:
    """Build networks without dropout that differ and have seen images."""
    torch.manual_seed(0)
    params = AdMt.Params(confidence=CONFIDENCE, pseudo_loss=pseudo_loss, rampup=0.8)
    strides = Frame(patch=SMALL[:dims]).strides
    method = METHODS["ad_mt"](task(dims, strides=strides), params)
    assert isinstance(method, AdMt)
    make_deterministic(method)
    with torch.no_grad():
        for teacher in method.teachers:
            for parameter in teacher.parameters():
                parameter *= 1 + 0.1 * torch.randn_like(parameter)
            for _ in range(5):  # running statistics
                teacher.network(require_unlabeled(batch(dims, size=SMALL).unlabeled).weak)
    return method.train()


def predict(network: nn.Module, images: Tensor, training: bool) -> Tensor:
    """Predict [B, K, *S] in float64 with a copy of the network, as probabilities."""
    with torch.no_grad():
        p: Tensor = copy.deepcopy(network).train(training)(images).double().softmax(1)
    return p


def pixels(x: Tensor) -> list[list[float]]:
    """List the K numbers of every pixel of x [B, K, *S]."""
    rows: list[list[float]] = x.movedim(1, -1).reshape(-1, x.shape[1]).tolist()
    return rows


def label_by_hand(p: list[float], q: list[float], student: list[float]) -> tuple[int, float, str]:
    """Return the pseudo-label of a pixel, its confidence, and who gave it."""

    def entropy(x: list[float]) -> float:
        return -sum(value * math.log2(value + 1e-10) for value in x)

    a, b = math.exp(-entropy(p)), math.exp(-entropy(q))
    mean = [(a * x + b * y) / (a + b) for x, y in zip(p, q, strict=True)]
    label, by_student = mean.index(max(mean)), student.index(max(student))
    if p.index(max(p)) == q.index(max(q)):
        return label, max(mean), "both"
    if by_student != label and max(student) > max(mean):
        return by_student, max(student), "student"
    return label, max(mean), "conflict"


def dice_by_hand(p: list[list[float]], labels: list[int], epsilon: float = 1e-5) -> float:
    """Average 1 − (2 Σ p t + ε) / (Σ p² + Σ t² + ε) over all classes."""
    losses = []
    for k in range(len(p[0])):
        overlap = sum(row[k] for row, label in zip(p, labels, strict=True) if label == k)
        size = sum(row[k] ** 2 for row in p) + labels.count(k)
        losses.append(1 - (2 * overlap + epsilon) / (size + epsilon))
    return sum(losses) / len(losses)


def cross_entropy_by_hand(p: list[list[float]], labels: list[int]) -> float:
    return -sum(math.log(row[k]) for row, k in zip(p, labels, strict=True)) / len(labels)


@pytest.mark.parametrize(("phase", "pseudo_loss"), [(INTENSITY, "dice"), (CUTMIX, "cross_entropy")])
def test_losses_by_hand(dims: int, phase: int, pseudo_loss: str) -> None:
    method, data = build_different(dims, pseudo_loss), batch(dims, size=SMALL)
    method.phase = phase
    images = require_unlabeled(data.unlabeled)
    active, passive = (method.teachers[number].network for number in (phase, 1 - phase))
    p, q = predict(active, images.weak, True), predict(passive, images.weak, False)
    torch.manual_seed(5)
    partner, box = draw_cutmix(images.weak.shape, images.weak.device)

    def mix(x: Tensor) -> Tensor:
        """Paste the box of every image's partner, one image after the other."""
        if phase == INTENSITY:
            return x
        both = zip(x, x[partner], box, strict=True)
        return torch.stack([torch.where(mask, other, one) for one, other, mask in both])

    view = images.strong[0] if phase == INTENSITY else mix(images.weak)
    joint = predict(method.student, torch.cat([data.labeled.image, images.weak, view]), True)
    labeled, student, learner = joint.split([3, 4, 4])
    torch.manual_seed(5)
    losses = method.losses(data, as_scalar(4))

    by_pixel = map(label_by_hand, pixels(p), pixels(q), pixels(student))
    labels, confidences, sources = map(list, zip(*by_pixel, strict=True))
    shape = images.weak[:, 0].shape
    pseudo_label = mix(torch.tensor(labels).view(shape)).flatten().tolist()
    confidence = mix(torch.tensor(confidences).view(shape)).flatten().tolist()
    kept = [number for number, value in enumerate(confidence) if value >= CONFIDENCE]
    learned = pixels(learner)
    loss = {"dice": dice_by_hand, "cross_entropy": cross_entropy_by_hand}[pseudo_loss]
    expected = {
        "pseudo": loss([learned[n] for n in kept], [pseudo_label[n] for n in kept]),
        "kept": len(kept) / len(labels),
        "share_conflict": 1 - sources.count("both") / len(labels),
        "share_overruled": sources.count("student") / len(labels),
        "share_1": labels.count(1) / len(labels),
    }
    rows, truth = pixels(labeled), data.labeled.label.flatten().tolist()
    expected["labeled"] = (cross_entropy_by_hand(rows, truth) + dice_by_hand(rows, truth)) / 2
    ramp = math.exp(-5 * (1 - 4 / 8) ** 2)
    expected["total"] = expected["labeled"] + 2 * ramp * expected["pseudo"]
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name
    assert 0.1 < expected["kept"] < 0.99
    assert expected["share_conflict"] > expected["share_overruled"] > 0.01


def test_the_student_has_a_say_only_in_conflicts_it_is_surer_about() -> None:
    target = PseudoLabel(torch.full((2, 2), 0.7), torch.tensor([[1, 1], [1, 1]]))
    student = PseudoLabel(
        torch.tensor([[0.9, 0.6], [0.9, 0.9]]), torch.tensor([[2, 2], [1, 2]])
    )  # surer, less sure, of the same opinion, without a conflict
    conflict = torch.tensor([[True, True], [True, False]])
    resolved, overruled = overrule(target, student, conflict)
    assert overruled.tolist() == [[True, False], [False, False]]
    assert resolved.label.tolist() == [[2, 1], [1, 1]]
    torch.testing.assert_close(resolved.confidence, torch.tensor([[0.9, 0.7], [0.7, 0.7]]))


def phases(seed: int, max_period: int, steps: int = 10, last: int = 4000) -> list[int]:
    torch.manual_seed(seed)
    method = METHODS["ad_mt"](task(2, steps=steps), AdMt.Params(max_period=max_period))
    return [method.phase_at(step) for step in range(last)]


def test_teachers_take_turns_of_random_lengths() -> None:
    sequence = phases(0, max_period=19)
    assert sequence[0] == INTENSITY
    ends = [step for step in range(1, 4000) if sequence[step] != sequence[step - 1]]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert set(lengths) == set(range(1, 20))
    # In the published logs: 10.06 steps, and the first teacher is active in 49.6 and 51.1 %.
    assert sum(lengths) / len(lengths) == pytest.approx(10, abs=1.0)
    assert sequence.count(INTENSITY) / 4000 == pytest.approx(0.5, abs=0.05)
    assert phases(0, max_period=1, last=4) == [0, 1, 0, 1]


def test_periods_depend_on_the_seed_alone() -> None:
    """Not on the length of the run, nor on the steps that were asked about before."""
    sequence = phases(0, max_period=5, last=300)
    assert phases(0, max_period=5, steps=1000, last=300) == sequence
    assert phases(1, max_period=5, last=300) != sequence
    torch.manual_seed(0)
    method = METHODS["ad_mt"](task(2), AdMt.Params(max_period=5))
    assert [method.phase_at(step) for step in (299, 3, 150)] == [
        sequence[step] for step in (299, 3, 150)
    ]


def test_the_student_starts_as_in_other_methods_and_the_teachers_as_its_copies() -> None:
    method, supervised = build("ad_mt", 2), build("supervised", 2)
    weights = supervised.student.state_dict()
    assert isinstance(method, AdMt)
    for network in (method.student, *(teacher.network for teacher in method.teachers)):
        state = network.state_dict()
        assert all(torch.equal(state[name], value) for name, value in weights.items())


def test_the_passive_teacher_is_frozen_and_the_teachers_grow_apart() -> None:
    torch.manual_seed(0)
    method = METHODS["ad_mt"](task(2), AdMt.Params(max_period=2))
    assert isinstance(method, AdMt)
    method.train()
    switched = 0
    for step in range(7):
        before = [copy.deepcopy(teacher.state_dict()) for teacher in method.teachers]
        losses_at(method, batch(2), step)["total"].backward()
        descend(method)
        method.after_step(as_scalar(step))
        active, passive = method.phase, 1 - method.phase
        switched += step > 0 and method.phase_at(step) != method.phase_at(step - 1)
        after = [teacher.state_dict() for teacher in method.teachers]
        assert all(torch.equal(after[passive][name], before[passive][name]) for name in after[0])
        changed = [name for name in after[0] if (after[active][name] != before[active][name]).any()]
        assert any(name.endswith("running_mean") for name in changed)
        assert any(name.endswith("weight") for name in changed)
    assert switched >= 3
    first, second = (dict(teacher.network.named_parameters()) for teacher in method.teachers)
    assert all((first[name] != second[name]).any() for name in first if name.endswith("weight"))


def test_the_active_teacher_is_a_copy_at_first_and_averages_half_of_the_steps() -> None:
    """a = 0 while s < R, then min(1 − 1/(s − R + 1), decay), with s = ⌊t/2⌋ and R = max_period."""
    torch.manual_seed(0)
    method = METHODS["ad_mt"](task(2), AdMt.Params(max_period=3, ema_decay=0.7))
    assert isinstance(method, AdMt)
    bias = method.second_teacher.network.decoder.output.bias
    method.phase, expected, moved = CUTMIX, bias.clone(), 0.0
    for step in range(14):
        with torch.no_grad():
            for parameter in method.student.parameters():
                parameter += 1.0
        method.after_step(as_scalar(step))
        half = step // 2
        decay = 0.0 if half < 3 else min(1 - 1 / (half - 3 + 1), 0.7)
        moved = decay * moved + (1 - decay) * (step + 1)
        torch.testing.assert_close(bias, expected + moved)


@pytest.mark.parametrize("pseudo_loss", ["dice", "cross_entropy"])
def test_without_confident_pixels_only_the_labeled_loss_remains(pseudo_loss: str) -> None:
    method = build("ad_mt", 2)
    method.params = AdMt.Params(confidence=1.0, pseudo_loss=pseudo_loss)
    for phase in (INTENSITY, CUTMIX):
        method.phase = phase
        losses = method.losses(batch(2), as_scalar(9))
        assert losses["kept"].item() == losses["pseudo"].item() == 0.0
        assert losses["total"].item() == losses["labeled"].item()
        losses["total"].backward()
        assert all(torch.isfinite(p.grad).all() for p in method.student.parameters())


def test_the_student_predicts_and_the_teachers_get_no_gradient() -> None:
    method = build("ad_mt", 2)
    assert isinstance(method, AdMt)
    assert method.predictor is method.student
    losses_at(method, batch(2), 9)["total"].backward()
    assert all(p.grad is None for teacher in method.teachers for p in teacher.parameters())
