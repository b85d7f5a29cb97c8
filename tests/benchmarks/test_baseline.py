"""The baseline computes what crkd computes: otherwise their times could not be compared."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from benchmarks import baseline
from benchmarks.baseline import LAMBDAS, Published
from crkd_cli.config import Frame, ModelConfig
from crkd_cli.data.batch import Batch, Labeled, Unlabeled
from crkd_cli.data.store import ChannelInfo, DatasetSpec
from crkd_cli.evaluation import paper
from crkd_cli.inference.inferer import Inferer
from crkd_cli.methods.base import Task
from crkd_cli.methods.crkd import Crkd
from crkd_cli.metrics.overlap import confusion, dice, jaccard
from crkd_cli.metrics.surface import surface
from crkd_cli.models.networks.base import Network

# All terms at full weight, no dropout.
STEADY = {"rampup": 0.0, "feature_dropout": 0.0}
CLASSES = 3


def both(task: Task, confidence: float, dense: bool) -> tuple[Crkd, Published]:
    """Return crkd's method and the baseline with the same weights and without dropout."""
    torch.manual_seed(0)
    method = Crkd(task, Crkd.Params(confidence=confidence, **STEADY)).eval()
    published = Published(method.student, task, confidence, dropout=0.0, dense=dense).eval()
    pairs = zip(published.projection.parameters(), method.projection.parameters(), strict=True)
    with torch.no_grad():
        for copy, parameter in pairs:
            copy.copy_(parameter.reshape(copy.shape))
    return method, published


@pytest.mark.slow
def test_same_losses_and_gradients(dims: int) -> None:
    # CutMix leaves an odd image alone, hence one unlabeled image. CSD draws at random: see below.
    torch.manual_seed(1)
    size = (32,) * dims
    # Bright images, so that the streams differ.
    image, weak = 20.0 * torch.randn(2, 1, *size), 20.0 * torch.randn(1, 1, *size)
    strong = 0.5 * weak + 10.0 * torch.randn_like(weak)
    label = torch.randint(CLASSES, (2, *size))
    model = ModelConfig(name=("unet", "vnet")[dims - 2], widths=(4, 4, 8, 8, 8))
    task = Task(model, dims, 1, CLASSES, 10)
    # Half of the pixels count.
    confidence = float(both(task, 0.5, dense=False)[1].pseudo_label(weak)[0].median())
    method, published = both(task, confidence, dense=False)
    counted = published.pseudo_label(weak)[0].ge(confidence).float().mean()
    assert counted == pytest.approx(0.5, abs=0.01)
    losses = method.losses(Batch(Labeled(image, label), Unlabeled(weak, (strong,))), 5)
    expected = published.losses(image, label, weak, strong)
    for name in ("labeled", "pseudo", "pixel", "feature", "entropy"):
        assert expected[name].item() > 1e-6, name
        assert losses[name].item() == pytest.approx(expected[name].item(), rel=1e-4), name
    parameters = list(method.student.parameters())
    gradients = []
    for terms in (losses, expected):
        weighted = [LAMBDAS[name] * terms[name] for name in LAMBDAS if name != "semantic"]
        total = torch.stack(weighted).sum()
        rest = terms["total"] - LAMBDAS["semantic"] * terms["semantic"]
        assert total.item() == pytest.approx(rest.item(), rel=1e-5)
        gradients.append(torch.autograd.grad(total, parameters))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


class Pixels(Network):
    """Looks at single pixels: those of one class and brightness have the same feature."""

    features = 16

    def __init__(self, dims: int) -> None:
        nn.Module.__init__(self)
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        self.feature = conv(CLASSES, self.features, 1, bias=False)
        self.output = conv(self.features, CLASSES, 1, bias=False)
        inverse = torch.linalg.pinv(self.feature.weight.detach().flatten(1))
        # The logits are five times the input.
        self.output.weight.data = 5.0 * inverse.reshape(self.output.weight.shape)

    def encode(self, x, feedback=()):
        return [x] * 5

    def decode(self, pyramid, stages=None):
        return self.feature(pyramid[0])

    def head(self, features):
        return self.output(features)

    def new_decoder(self, upsampling):
        raise NotImplementedError


class PixelTask(Task):
    def network(self):
        return Pixels(self.dims)


@pytest.mark.parametrize("dense", [True, False])
def test_same_semantic_loss(dims: int, dense: bool) -> None:
    torch.manual_seed(2)
    size = (16, 24, 8)[:dims]
    classes = [torch.randint(CLASSES, (2, *size)), torch.randint(CLASSES, (1, *size))]
    image, weak = (nn.functional.one_hot(k, CLASSES).movedim(-1, 1).float() for k in classes)
    # Half of the unlabeled pixels are dim: the network is less certain of them.
    weak = weak * torch.where(torch.rand(1, 1, *size) < 0.5, 0.4, 1.0)
    label = torch.where(torch.rand(classes[0].shape) < 0.7, classes[0], 0)
    task = PixelTask(ModelConfig(name="unet"), dims, CLASSES, CLASSES, 10)
    method, published = both(task, 0.5, dense)
    losses = method.losses(Batch(Labeled(image, label), Unlabeled(weak, (0.8 * weak,))), 5)
    expected = published.losses(image, label, weak, 0.8 * weak)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-7), name
    # Not the loss of identical samples.
    assert abs(expected["semantic"].item() - np.log(2 * published.samples)) > 1e-3


def test_same_window_probabilities() -> None:
    torch.manual_seed(3)
    task = Task(ModelConfig(name="vnet", widths=(4, 4, 8, 8, 8)), 3, 1, 2, 10)
    network = task.network().eval()
    spec = DatasetSpec("x", "la", ("a", "b"), (ChannelInfo("MR", "zscore"),), 3)
    image = torch.randn(40, 37, 14).numpy()  # thinner than the patch on one axis
    patch, stride = (32, 32, 16), (6, 4, 4)
    frame = Frame(patch=patch, stride=stride)
    inferer = Inferer([network], frame, spec, torch.device("cpu"), protocol="paper")
    expected = baseline.window_probabilities(network, image, patch, stride, 2)
    assert expected.std() > 0.001
    np.testing.assert_allclose(inferer.probabilities(image[None]), expected, atol=1e-5)


def test_same_scores(dims: int, rng: np.random.Generator) -> None:
    blurred = [gaussian_filter(rng.standard_normal((24,) * dims), 2.0) for _ in range(2)]
    prediction, truth = (values > 0.02 for values in blurred)
    expected = baseline.medpy_scores(prediction, truth)
    np.testing.assert_allclose(paper.scores(prediction, truth, "la"), expected, rtol=1e-6)
    voxels = confusion(prediction.astype(np.uint8), truth.astype(np.uint8), 2)
    asd = surface(prediction, truth, (1.0,) * dims, 2.0).asd  # its hd95 is defined differently
    scores = (dice(voxels)[1], jaccard(voxels)[1], asd)
    np.testing.assert_allclose(scores, (*expected[:2], expected[3]), rtol=1e-6)
