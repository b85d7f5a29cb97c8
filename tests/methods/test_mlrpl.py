"""MLRPL: every term against loops over pixels in float64, what gets a gradient, ties and classes that are nowhere."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from crkd_cli.config import ModelConfig
from crkd_cli.data.batch import Batch
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import require_unlabeled
from crkd_cli.methods.mlrpl import Mlrpl, similarity
from tests.methods.test_contract import batch, calm, task

STEP, WEIGHT = 3, 2.0 * math.exp(-5 * (1 - 3 / 5) ** 2)  # of a ramp of half of 10 steps, up to 2


def build(dims: int, network: str = "unet", **params: float) -> Mlrpl:
    torch.manual_seed(0)
    own = replace(task(dims), model=ModelConfig(name=network, widths=(4, 4, 8, 8, 8)))
    method = METHODS["mlrpl"](own, Mlrpl.Params(consistency_weight=2.0, rampup=0.5, **params))
    assert isinstance(method, Mlrpl)
    calm(method)
    return method.train()


def answers(
    method: Mlrpl, data: Batch, dropped: bool = True
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits and features of either decoder, drawn as in `losses` for the same seed."""
    pyramid = method.student.encode(
        torch.cat([data.labeled.image, require_unlabeled(data.unlabeled).weak])
    )
    logits, features = [], []
    for decoder in (method.student.decoder, method.other):
        plain = decoder(pyramid)
        entering = decoder.drop(plain)
        logits.append(decoder.output(entering))
        features.append(entering if dropped else plain)
    return logits, features


def trust(
    p: np.ndarray, features: np.ndarray, predicted_class: bool
) -> tuple[np.ndarray, np.ndarray]:
    """p [K, pixels], features [F, pixels] of one image → labels and weights [pixels], pixel by pixel."""
    said = [int(np.argmax(p[:, v])) for v in range(p.shape[1])]
    prototypes = np.zeros((len(p), len(features)))
    for k in range(len(p)):
        mine = [features[:, v] for v in range(p.shape[1]) if said[v] == k]
        total = sum(mine, np.zeros(len(features))) / (len(mine) + 1e-6)
        prototypes[k] = total / max(np.linalg.norm(total), 1e-12)
    weights = []
    for v, label in enumerate(said):
        length = max(np.linalg.norm(features[:, v]), 1e-8)
        agreement = [
            1 - (prototypes[k] @ features[:, v] / length - p[k, v]) ** 2 for k in range(len(p))
        ]
        weights.append(agreement[label] if predicted_class else sum(agreement) / len(p))
    return np.array(said), np.array(weights)


@pytest.mark.parametrize(
    ("network", "params"),
    [
        ("unet", {}),
        ("vnet", {}),
        ("vnet", {"dropped_features": False, "labeled_weight": 0.7}),
        ("unet", {"mutual_on_labeled": False, "predicted_class_only": True}),
    ],
)
def test_terms_by_hand(dims: int, network: str, params: dict[str, float]) -> None:
    method, data = build(dims, network, **params), batch(dims)
    torch.manual_seed(5)
    losses = method.losses(data, STEP)
    torch.manual_seed(5)
    logits, features = answers(method, data, bool(params.get("dropped_features", True)))
    p = [z.detach().double().softmax(1).flatten(2).numpy() for z in logits]
    maps = [f.detach().double().flatten(2).numpy() for f in features]
    label = data.labeled.label.flatten(1).numpy()
    labeled = 0.0
    for one in p:
        for k in (1, 2):
            truth, guess = label == k, one[: len(label), k]
            labeled += (
                1 - (2 * guess[truth].sum() + 1e-8) / (guess.sum() + truth.sum() + 1e-8)
            ) / 2
    images = range(0 if params.get("mutual_on_labeled", True) else len(label), len(p[0]))
    taught = [
        [trust(q[n], f[n], bool(params.get("predicted_class_only"))) for n in images]
        for q, f in zip(p, maps, strict=True)
    ]
    pseudo = 0.0
    for student, teacher in ((0, 1), (1, 0)):
        total, count = 0.0, 0
        for n, (said, weights) in zip(images, taught[teacher], strict=True):
            for v in range(p[0].shape[2]):
                unsure = [
                    -sum(x * math.log(x) for x in p[which][n, :, v] if x)
                    for which in (student, teacher)
                ]
                if unsure[0] > unsure[1]:
                    count += 1
                    total -= weights[v] * math.log(p[student][n, said[v], v])
        assert 0.1 < count / (len(images) * p[0].shape[2]) < 0.9
        pseudo += total / (count + 1e-6)
    assert losses["labeled"].item() == pytest.approx(labeled, rel=1e-4)
    assert losses["pseudo"].item() == pytest.approx(pseudo, rel=1e-3)
    assert losses["total"].item() == pytest.approx(
        params.get("labeled_weight", 0.5) * labeled + WEIGHT * pseudo, rel=1e-3
    )
    reliable = np.mean([[weights for _, weights in lessons] for lessons in taught])
    assert losses["share_reliable"].item() == pytest.approx(reliable, rel=1e-4)


def test_only_the_learner_gets_a_gradient(dims: int) -> None:
    """Either decoder's gradient is that of its own answer, with labels, masks and weights of the other as constants."""
    method, data = build(dims, labeled_weight=0.0), batch(dims)
    method.losses(data, STEP)["total"].backward()
    found = {name: p.grad.clone() for name, p in method.named_parameters()}
    method.zero_grad()
    logits, features = answers(method, data)
    one, two = (method.lesson(z.log_softmax(1), f) for z, f in zip(logits, features, strict=True))
    assert not any(part.requires_grad for lesson in (one, two) for part in lesson)
    for z, own, other in ((logits[0], one, two), (logits[1], two, one)):
        mask = own.entropy > other.entropy
        by_pixel = functional.cross_entropy(z, other.pseudo, reduction="none")
        (WEIGHT * (other.weight * by_pixel)[mask].sum() / mask.sum()).backward(retain_graph=True)
    for name, p in method.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-5)


def test_ties_teach_nothing() -> None:
    method, data = build(2), batch(2)
    method.other = copy.deepcopy(method.student.decoder)
    losses = method.losses(data, STEP)
    assert losses["pseudo"].item() == 0.0
    assert losses["share_agreed"].item() == 1.0


def test_similarity_to_a_class_that_is_nowhere_is_0(dims: int) -> None:
    """Class 0 is one image's whole, class 2 the other's; a feature without length is like nothing."""
    features = torch.rand(2, 5, *[4] * dims)
    features[0, :, 0] = 0.0
    pseudo = torch.zeros(2, *[4] * dims, dtype=torch.long)
    pseudo[1] = 2
    found = similarity(features, pseudo, 3)
    assert (found[0, 1:] == 0).all()
    assert (found[1, :2] == 0).all()
    assert (found[0, 0, 0] == 0).all()
    mean = features[1].flatten(1).mean(1)
    expected = functional.cosine_similarity(features[1], mean.view(-1, *[1] * dims), dim=0)
    torch.testing.assert_close(found[1, 2], expected)


def test_decoders_differ_by_upsampling_and_the_first_predicts(dims: int) -> None:
    method = build(dims)
    grown = [
        {type(layer).__name__ for layer in decoder.upsample.modules()}
        for decoder in (method.student.decoder, method.other)
    ]
    assert f"ConvTranspose{dims}d" in grown[0]
    assert {"Upsample", f"Conv{dims}d"} <= grown[1]
    assert method.predictor is method.student
