"""MLRPL: every term against loops over pixels in float64, gradients, ties, absent classes."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crkd_cli.config import ModelConfig
from crkd_cli.data.batch import Batch
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import require_unlabeled
from crkd_cli.methods.mlrpl import Mlrpl, similarity
from tests.methods.test_contract import batch, make_deterministic, task

STEP = 3  # of 10; the weight rises to 2 over the first 5
WEIGHT = 2.0 * math.exp(-5 * (1 - 3 / 5) ** 2)


def build(dims: int, network: str = "unet", **params: float) -> Mlrpl:
    torch.manual_seed(0)
    model = ModelConfig(name=network, widths=(4, 4, 8, 8, 8))
    settings = Mlrpl.Params(consistency_weight=2.0, rampup=0.5, **params)
    method = METHODS["mlrpl"](replace(task(dims), model=model), settings)
    assert isinstance(method, Mlrpl)
    make_deterministic(method)
    return method.train()


def predict(
    method: Mlrpl, data: Batch, dropped: bool = True
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return logits and features of both decoders, as `losses` draws them for the same seed."""
    images = torch.cat([data.labeled.image, require_unlabeled(data.unlabeled).weak])
    pyramid = method.student.encode(images)
    logits, features = [], []
    for decoder in (method.student.decoder, method.other):
        plain = decoder(pyramid)
        after_dropout = decoder.drop(plain)
        logits.append(decoder.output(after_dropout))
        features.append(after_dropout if dropped else plain)
    return logits, features


def slow_target(
    p: np.ndarray, features: np.ndarray, predicted_class: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Compute labels and weights [pixels] of one image from p [K, pixels], features [F, pixels]."""
    labels = [int(np.argmax(p[:, v])) for v in range(p.shape[1])]
    prototypes = np.zeros((len(p), len(features)))
    for k in range(len(p)):
        members = [features[:, v] for v in range(p.shape[1]) if labels[v] == k]
        mean = sum(members, np.zeros(len(features))) / (len(members) + 1e-6)
        prototypes[k] = mean / max(np.linalg.norm(mean), 1e-12)
    weights = []
    for v, label in enumerate(labels):
        norm = max(np.linalg.norm(features[:, v]), 1e-8)
        cosines = [prototypes[k] @ features[:, v] / norm for k in range(len(p))]
        agreement = [1 - (cosines[k] - p[k, v]) ** 2 for k in range(len(p))]
        weights.append(agreement[label] if predicted_class else sum(agreement) / len(p))
    return np.array(labels), np.array(weights)


def slow_entropy(p: np.ndarray) -> float:
    return -sum(x * math.log(x) for x in p if x)


@pytest.mark.slow
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
    logits, features = predict(method, data, bool(params.get("dropped_features", True)))
    p = [z.detach().double().softmax(1).flatten(2).numpy() for z in logits]
    maps = [f.detach().double().flatten(2).numpy() for f in features]
    label = data.labeled.label.flatten(1).numpy()
    labeled = 0.0
    for p_decoder in p:
        for k in (1, 2):
            truth, predicted = label == k, p_decoder[: len(label), k]
            overlap, size = predicted[truth].sum(), predicted.sum() + truth.sum()
            labeled += (1 - (2 * overlap + 1e-8) / (size + 1e-8)) / 2
    images = range(0 if params.get("mutual_on_labeled", True) else len(label), len(p[0]))
    predicted_class = bool(params.get("predicted_class_only"))
    targets = [[slow_target(p[d][n], maps[d][n], predicted_class) for n in images] for d in (0, 1)]
    pseudo = 0.0
    for student, teacher in ((0, 1), (1, 0)):
        total, count = 0.0, 0
        for n, (labels, weights) in zip(images, targets[teacher], strict=True):
            for v in range(p[0].shape[2]):
                if slow_entropy(p[student][n, :, v]) > slow_entropy(p[teacher][n, :, v]):
                    count += 1
                    total -= weights[v] * math.log(p[student][n, labels[v], v])
        assert 0.1 < count / (len(images) * p[0].shape[2]) < 0.9
        pseudo += total / (count + 1e-6)
    assert losses["labeled"].item() == pytest.approx(labeled, rel=1e-4)
    assert losses["pseudo"].item() == pytest.approx(pseudo, rel=1e-3)
    total = params.get("labeled_weight", 0.5) * labeled + WEIGHT * pseudo
    assert losses["total"].item() == pytest.approx(total, rel=1e-3)
    weights = [[weights for _, weights in by_image] for by_image in targets]
    assert losses["share_reliable"].item() == pytest.approx(np.mean(weights), rel=1e-4)


def test_only_the_learner_gets_a_gradient(dims: int) -> None:
    """The gradient is that of both decoders' predictions; labels, masks, weights are constants."""
    method, data = build(dims, labeled_weight=0.0), batch(dims)
    method.losses(data, STEP)["total"].backward()
    gradients = {name: p.grad.clone() for name, p in method.named_parameters()}
    method.zero_grad()
    logits, features = predict(method, data)
    first, second = (
        method.target(z.log_softmax(1), f) for z, f in zip(logits, features, strict=True)
    )
    assert not any(x.requires_grad for x in (*first, *second))
    for z, learner, teacher in ((logits[0], first, second), (logits[1], second, first)):
        mask = learner.entropy > teacher.entropy
        by_pixel = teacher.weight * F.cross_entropy(z, teacher.label, reduction="none")
        (WEIGHT * by_pixel[mask].sum() / mask.sum()).backward(retain_graph=True)
    for name, p in method.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-3, atol=1e-5)


def test_ties_teach_nothing() -> None:
    method, data = build(2), batch(2)
    method.other = copy.deepcopy(method.student.decoder)
    losses = method.losses(data, STEP)
    assert losses["pseudo"].item() == 0.0
    assert losses["share_agreed"].item() == 1.0


def test_similarity_to_an_absent_class_is_0(dims: int) -> None:
    """One image is all class 0, the other all class 2; a zero feature is similar to nothing."""
    features = torch.rand(2, 5, *[4] * dims)
    features[0, :, 0] = 0.0
    pseudo = torch.zeros(2, *[4] * dims, dtype=torch.long)
    pseudo[1] = 2
    cosines = similarity(features, pseudo, 3)
    assert (cosines[0, 1:] == 0).all()
    assert (cosines[1, :2] == 0).all()
    assert (cosines[0, 0, 0] == 0).all()
    mean = features[1].flatten(1).mean(1)
    expected = F.cosine_similarity(features[1], mean.view(-1, *[1] * dims), dim=0)
    torch.testing.assert_close(cosines[1, 2], expected)


def test_decoders_differ_by_upsampling_and_the_first_predicts(dims: int) -> None:
    method = build(dims)
    first, second = (
        {type(layer).__name__ for layer in decoder.upsample.modules()}
        for decoder in (method.student.decoder, method.other)
    )
    assert f"ConvTranspose{dims}d" in first
    assert {"Upsample", f"Conv{dims}d"} <= second
    assert method.predictor is method.student
