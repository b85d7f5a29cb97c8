"""The certainty of predictions, against figures computed from whole probability maps."""

from itertools import combinations

import numpy as np
import pytest
import torch

from crkd_cli.config import Frame
from crkd_cli.inference.certainty import CertaintySums
from crkd_cli.inference.inferer import Inferer
from tests.inference.test_inferer import CPU, image, net, spec


def certainty_of(maps: np.ndarray):
    """Return the certainty of P passes with the probabilities `maps` [P, K, *S], plane by plane."""
    sums = CertaintySums(len(maps))
    mean = maps.mean(0)
    variance = ((maps - mean) ** 2).mean(0).sum(0)
    for plane in range(mean.shape[1]):
        part = torch.from_numpy(mean[:, plane : plane + 1])
        highest, labels = part.max(0)
        spread = torch.from_numpy(variance[plane : plane + 1])
        sums.add(labels, highest, part[0], spread if len(maps) > 1 else None)
    return sums.certainty()


def test_figures_by_hand():
    """Four voxels: two of the foreground with 0.9 and 0.7, background with 0.2 and 0.0 of it."""
    foreground = np.array([0.9, 0.7, 0.2, 0.0]).reshape(1, 2, 2)
    certainty = certainty_of(np.stack([1 - foreground, foreground])[None])
    assert certainty.confidence == pytest.approx((0.9 + 0.7) / 2)
    assert certainty.disagreement is None


def test_an_empty_mask_is_certain_if_the_probabilities_are():
    foreground = np.array([0.0, 0.4, 0.1, 0.3]).reshape(1, 2, 2)
    certainty = certainty_of(np.stack([1 - foreground, foreground])[None])
    assert certainty.confidence == pytest.approx(1 - 0.4)


@pytest.mark.parametrize("passes", [2, 3, 5])
def test_the_disagreement_of_certain_masks_is_their_dice(passes, rng):
    """1 − 2 Σ |A ∩ B| / Σ (|A| + |B|), with sums over all pairs of masks."""
    masks = rng.random((passes, 3, 6, 7)) < 0.3
    certainty = certainty_of(np.stack([~masks, masks], axis=1).astype(np.float64))
    pairs = list(combinations(masks, 2))
    common = sum(np.count_nonzero(a & b) for a, b in pairs)
    total = sum(np.count_nonzero(a) + np.count_nonzero(b) for a, b in pairs)
    assert certainty.disagreement == pytest.approx(1 - 2 * common / total)


@pytest.mark.parametrize(
    ("frame", "shape", "size"),
    [
        (Frame(resize=(16, 24)), (17, 30), None),
        (Frame(resize=(16, 24)), (5, 17, 30), (5, 20, 40)),
        (Frame(patch=(16, 16, 16)), (16, 16, 16), None),
    ],
    ids=str,
)
def test_models_and_flips_are_measured_in_one_pass(frame, shape, size):
    """As from the maps of every model and flip, for one window and no resizing of variances."""
    models = [net(frame.dims, seed=seed) for seed in (3, 4)]
    x = image(shape)
    options = {"frame": frame, "spec": spec(len(shape), 3), "device": CPU}
    singles = [Inferer([model], **options) for model in models]
    maps = []
    for single in singles:
        for flips in ([], [-1]):
            flipped = np.ascontiguousarray(np.flip(x, flips))
            maps.append(np.flip(single.probabilities(flipped, size), flips))
    expected = np.stack(maps).astype(np.float64)
    infer = Inferer(models, **options, mirrored_axes=(frame.dims - 1,), certainty=True)
    result = infer.infer(x, size, np.float32)
    np.testing.assert_allclose(result.probabilities, expected.mean(0), atol=2e-6)
    np.testing.assert_array_equal(result.labels, result.probabilities.argmax(0))
    by_hand = certainty_of(expected if expected.ndim == 5 else expected[:, :, None])
    assert result.certainty.confidence == pytest.approx(by_hand.confidence, abs=1e-4)
    if size is None and frame.patch:  # no variance was interpolated
        assert result.certainty.disagreement == pytest.approx(by_hand.disagreement, rel=1e-3)
    else:
        assert 0 < result.certainty.disagreement < 1


def test_the_same_model_twice_does_not_disagree():
    """With windows that overlap."""
    model = net(2)
    frame = Frame(patch=(16, 16))
    x = image((3, 40, 16))
    infer = Inferer([model, model], frame, spec(3, 3), CPU, certainty=True)
    result = infer.infer(x)
    plain = Inferer([model], frame, spec(3, 3), CPU).probabilities(x).astype(np.float64)
    by_hand = certainty_of(plain[None])
    assert result.certainty.confidence == pytest.approx(by_hand.confidence, abs=1e-5)
    assert result.certainty.disagreement == pytest.approx(0, abs=1e-5)
