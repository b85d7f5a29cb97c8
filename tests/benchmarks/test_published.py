"""The baseline of the benchmark computes what crkd computes: otherwise their times could not be compared."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from benchmarks.published import (
    LAMBDAS,
    Published,
    cutmix,
    dense_bytes,
    scores,
    window_probabilities,
)
from benchmarks.published_augment import (
    bias_field,
    strong_slice,
    strong_volume,
    weak_slice,
    weak_volume,
)
from crkd_cli.augment import intensity
from crkd_cli.config import Frame, ModelConfig
from crkd_cli.data.batch import Batch, Labeled, Unlabeled
from crkd_cli.data.store import DatasetSpec
from crkd_cli.evaluation import paper
from crkd_cli.inference.inferer import Inferer
from crkd_cli.methods.base import Task
from crkd_cli.methods.crkd import Crkd
from crkd_cli.metrics.overlap import confusion, dice, jaccard
from crkd_cli.metrics.surface import surface
from crkd_cli.models.networks.base import Decoder, Network, Upsampling

# All terms at full weight, no dropout.
STEADY = {"rampup": 0.0, "feature_dropout": 0.0}
CLASSES = 3


def both(task: Task, confidence: float, dense: bool) -> tuple[Crkd, Published]:
    """crkd's method and the baseline with the same weights, both without dropout."""
    torch.manual_seed(0)
    method = Crkd(task, Crkd.Params(confidence=confidence, **STEADY)).eval()
    published = Published(
        method.student, task.dims, task.classes, confidence, drop=0.0, dense=dense
    ).eval()
    with torch.no_grad():
        for mine, theirs in zip(
            published.projection.parameters(), method.projection.parameters(), strict=True
        ):
            mine.copy_(theirs.reshape(mine.shape))
    return method, published


@pytest.mark.slow
def test_same_losses_and_gradients(dims: int) -> None:
    # One unlabeled image: CutMix leaves an odd one alone. CSD draws at random; it has a test of its own.
    torch.manual_seed(1)
    size = (32,) * dims
    image, weak = (
        20.0 * torch.randn(2, 1, *size),
        20.0 * torch.randn(1, 1, *size),
    )  # bright: the streams must differ
    strong = 0.5 * weak + 10.0 * torch.randn_like(weak)
    label = torch.randint(CLASSES, (2, *size))
    task = Task(
        ModelConfig(name=("unet", "vnet")[dims - 2], widths=(4, 4, 8, 8, 8)), dims, 1, CLASSES, 10
    )
    confidence = float(
        both(task, 0.5, dense=False)[1].teach(weak)[0].median()
    )  # half of the pixels count
    method, published = both(task, confidence, dense=False)
    assert published.teach(weak)[0].ge(confidence).float().mean() == pytest.approx(0.5, abs=0.01)
    found = method.losses(Batch(Labeled(image, label), Unlabeled(weak, (strong,))), 5)
    expected = published.losses(image, label, weak, strong)
    for name in ("labeled", "pseudo", "pixel", "feature", "entropy"):
        assert expected[name].item() > 1e-6, name
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-4), name
    parameters = list(method.student.parameters())
    gradients = []
    for losses in (found, expected):
        total = torch.stack(
            [LAMBDAS[name] * losses[name] for name in LAMBDAS if name != "semantic"]
        ).sum()
        assert total.item() == pytest.approx(
            (losses["total"] - LAMBDAS["semantic"] * losses["semantic"]).item(), rel=1e-5
        )
        gradients.append(torch.autograd.grad(total, parameters))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


class Pixels(Network):
    """A network that looks at single pixels: pixels of one class and brightness have one feature, whichever are drawn."""

    features = 16

    def __init__(self, dims: int) -> None:
        nn.Module.__init__(self)
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        self.feature, self.output = (
            conv(CLASSES, self.features, 1, bias=False),
            conv(self.features, CLASSES, 1, bias=False),
        )
        inverse = torch.linalg.pinv(self.feature.weight.detach().flatten(1))
        self.output.weight.data = 5.0 * inverse.reshape(
            self.output.weight.shape
        )  # logits = 5 · input

    def encode(self, x: Tensor, feedback: Sequence[Tensor | None] = ()) -> list[Tensor]:
        return [x] * 5

    def new_decoder(self, upsampling: Upsampling | None) -> Decoder:
        raise NotImplementedError

    def decode(self, pyramid: Sequence[Tensor], stages: list[Tensor] | None = None) -> Tensor:
        features: Tensor = self.feature(pyramid[0])
        return features

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.output(features)
        return logits


class PixelTask(Task):
    def network(self) -> Network:
        return Pixels(self.dims)


@pytest.mark.parametrize("dense", [True, False])
def test_same_semantic_loss(dims: int, dense: bool) -> None:
    torch.manual_seed(2)
    size = (16, 24, 8)[:dims]
    one_hot = torch.eye(CLASSES).index_select
    shown = [torch.randint(CLASSES, (2, *size)), torch.randint(CLASSES, (1, *size))]
    image, weak = (
        one_hot(0, one.flatten()).view(*one.shape, CLASSES).movedim(-1, 1) for one in shown
    )
    # Half of the unlabeled pixels are dim: the network is less sure of them than of the others of their class.
    weak = weak * torch.where(torch.rand(1, 1, *size) < 0.5, 0.4, 1.0)
    label = torch.where(torch.rand(shown[0].shape) < 0.7, shown[0], 0)
    method, published = both(
        PixelTask(ModelConfig(name="unet"), dims, CLASSES, CLASSES, 10), 0.5, dense
    )
    found = method.losses(Batch(Labeled(image, label), Unlabeled(weak, (0.8 * weak,))), 5)
    expected = published.losses(image, label, weak, 0.8 * weak)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-7), name
    assert (
        abs(expected["semantic"].item() - np.log(2 * published.samples)) > 1e-3
    )  # not that of equal samples


def test_cutmix_swaps_the_same_box_in_all(dims: int) -> None:
    size = (24,) * dims
    images = torch.arange(4.0).view(4, 1, *[1] * dims).expand(4, 1, *size).clone()
    swapped = 0
    for seed in range(8):
        mixed, labels = cutmix([images, images[:, 0].long()], np.random.default_rng(seed))
        assert torch.equal(mixed[:, 0].long(), labels)
        assert torch.equal(
            mixed.unique(return_counts=True)[1], images.unique(return_counts=True)[1]
        )
        swapped += not torch.equal(mixed, images)
    assert swapped >= 3  # three of four draws swap at least one of the two pairs


def test_same_window_probabilities() -> None:
    torch.manual_seed(3)
    task = Task(ModelConfig(name="vnet", widths=(4, 4, 8, 8, 8)), 3, 1, 2, 10)
    network = task.network().eval()
    spec = DatasetSpec(
        name="x",
        source="la",
        classes=("a", "b"),
        channels=1,
        modality="mr",
        dims=3,
        intensity="zscore",
    )
    image = torch.randn(40, 37, 14).numpy()  # thinner than the patch on one axis
    frame = Frame(patch=(32, 32, 16), stride=(6, 4, 4))
    found = Inferer(network, frame, spec, torch.device("cpu"), protocol="paper").probabilities(
        image[None]
    )
    expected = window_probabilities(network, image, (32, 32, 16), (6, 4, 4), 2)
    assert expected.std() > 0.001
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_same_scores(dims: int, rng: np.random.Generator) -> None:
    prediction, truth = (
        gaussian_filter(rng.standard_normal((24,) * dims), 2.0) > 0.02 for _ in range(2)
    )
    expected = scores(prediction, truth)
    np.testing.assert_allclose(paper.scores(prediction, truth, "la"), expected, rtol=1e-6)
    voxels = confusion(prediction.astype(np.uint8), truth.astype(np.uint8), 2)
    ours = surface(
        prediction, truth, (1.0,) * dims, 2.0
    )  # its hd95 is another: the larger of the two directed ones
    np.testing.assert_allclose(
        (dice(voxels)[1], jaccard(voxels)[1], ours.asd), (*expected[:2], expected[3]), rtol=1e-6
    )


def test_same_bias_field(rng: np.random.Generator) -> None:
    coefficients = rng.uniform(-0.5, 0.5, (4, 4, 4)) * (sum(np.indices((4, 4, 4))) <= 3)
    found = intensity.bias_field(
        torch.zeros(1, 1, 6, 7, 5), torch.from_numpy(coefficients).float()[None]
    )
    np.testing.assert_allclose(found[0, 0].numpy(), bias_field((6, 7, 5), coefficients), rtol=1e-5)


def test_augmentation_moves_image_and_label_alike(rng: np.random.Generator) -> None:
    flat = rng.integers(0, 4, (30, 26)).astype(np.uint8)
    for _ in range(10):
        image, label = weak_slice(flat.astype(np.float32), flat, (32, 32), rng)
        assert image.shape == (32, 32)
        assert label is not None
        np.testing.assert_array_equal(image, label)
    solid = rng.integers(0, 4, (20, 24, 6)).astype(np.uint8)
    for _ in range(10):
        image, label = weak_volume(solid.astype(np.float32), solid, (16, 16, 8), rng)
        assert image.shape == (16, 16, 8)
        assert label is not None
        np.testing.assert_array_equal(image, label)


def test_strong_views_change_intensities_only(rng: np.random.Generator) -> None:
    plane, volume = np.zeros((20, 16), np.float32), np.zeros((20, 16, 12), np.float32)
    plane[5:12, 4:9] = volume[5:12, 4:9, 3:8] = 0.6
    for image, strong in ((plane, strong_slice), (volume, strong_volume)):
        views = [strong(image, rng) for _ in range(8)]
        assert all(view.shape == image.shape and view.dtype == np.float32 for view in views)
        assert len({view.tobytes() for view in views}) > 4
        assert all(view[image > 0].mean() > view[image == 0].mean() + 0.1 for view in views)


def test_memory_of_the_dense_projection() -> None:
    # Three streams, six maps of 256 channels in fp32 each: 112·112·80·2 voxels · 256 · 4 bytes = 2.055 GB a map.
    assert dense_bytes(2, (112, 112, 80)) == 18 * 112 * 112 * 80 * 2 * 256 * 4
