"""CSD: sampling, projecting after sampling, and the contrastive loss against a slow loop."""

import math

import pytest
import torch

from crkd_cli.losses.contrast import Samples, class_means, contrast, sample
from crkd_cli.models.projection import Projection


def test_class_means(dims: int) -> None:
    confidence = torch.tensor([0.5, 0.7, 0.9, 1.0]).view(1, 4, *[1] * (dims - 1))
    pseudo = torch.tensor([0, 0, 2, 2]).view_as(confidence)
    torch.testing.assert_close(class_means(confidence, pseudo, 3), torch.tensor([0.6, 0.0, 0.95]))


def test_class_means_of_many_classes(dims: int) -> None:
    """Class k has k pixels with the confidences 1/k, 2/k … 1, whose mean is (k + 1) / 2k."""
    pseudo = torch.tensor([k for k in range(26) for _ in range(k)])
    confidence = torch.tensor([(i + 1) / k for k in range(26) for i in range(k)])
    shape = (1, len(pseudo), *[1] * (dims - 1))
    expected = torch.tensor([0.0, *((k + 1) / (2 * k) for k in range(1, 26))])
    torch.testing.assert_close(
        class_means(confidence.view(shape), pseudo.view(shape), 26), expected
    )


def test_class_means_stay_exact_for_a_batch_of_real_size(dims: int) -> None:
    """Compare two million voxels, as many as two LA patches have, with float64."""
    torch.manual_seed(dims)
    shape = (2, 1_000_000 // 64 ** (dims - 2), *[64] * (dims - 2))
    confidence = 0.999 + 0.001 * (2 * torch.rand(shape) - 1)
    pseudo = torch.zeros_like(confidence, dtype=torch.long)
    expected = confidence.double().mean().item()
    assert class_means(confidence, pseudo, 2)[0].item() == pytest.approx(expected, abs=1e-6)


def draw(dims: int, number: int = 10) -> tuple[Samples, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return samples, and the features, classes and eligible pixels that they were drawn from."""
    torch.manual_seed(dims)
    space = (6, 5, 4)[:dims]
    classes = torch.randint(2, (2, *space)) * 2  # classes 0 and 2; class 1 is absent
    eligible = torch.rand(2, *space) < 0.5
    features = torch.randn(2, 3, *space)
    features[:, 0] = torch.arange(classes.numel()).view_as(classes).float()  # the pixel's number
    samples = sample(features, classes, eligible, torch.rand(2, *space), 3, number)
    return samples, features, classes, eligible


def test_sample_draws_the_quota_of_every_class_from_eligible_pixels(dims: int) -> None:
    samples, features, classes, eligible = draw(dims)
    # 10 = 3 + 3 + 4, and a mean for each class.
    assert torch.bincount(samples.classes).tolist() == [3 + 1, 3 + 1, 4 + 1]
    assert torch.equal(samples.valid, samples.classes != 1)
    rows = features.movedim(1, -1).reshape(-1, 3)
    for k in (0, 2):
        *drawn, mean = samples.features[samples.classes == k]
        numbers = [int(row[0]) for row in drawn]
        members = ((classes == k) & eligible).flatten()
        assert all(members[number] for number in numbers)
        assert len(set(numbers)) == len(numbers)  # there are enough, so none is drawn twice
        for row, number in zip(drawn, numbers, strict=True):
            torch.testing.assert_close(row, rows[number])
        torch.testing.assert_close(mean, rows[members].mean(0))


def test_of_many_classes_every_one_that_occurs_is_sampled(dims: int) -> None:
    """By hand: 26 classes of 1 to 12 pixels in any place; 256 = 4 · 9 + 22 · 10 samples."""
    torch.manual_seed(dims)
    sizes = [0 if k in (7, 19) else 1 + k % 12 for k in range(26)]
    classes = torch.tensor([k for k, size in enumerate(sizes) for _ in range(size)])
    classes = classes[torch.randperm(len(classes))]
    order = torch.rand(len(classes))
    ranking = order.argsort(descending=True).tolist()
    shape = (1, len(classes), *[1] * (dims - 1))
    numbers = torch.arange(len(classes)).float()
    everywhere = torch.ones(shape, dtype=torch.bool)
    samples = sample(
        numbers.view(1, *shape), classes.view(shape), everywhere, order.view(shape), 26, 256
    )
    for k, size in enumerate(sizes):
        *drawn, mean = samples.features[samples.classes == k].flatten().tolist()
        quota = 9 if k < 4 else 10
        assert len(drawn) == quota
        assert samples.valid[samples.classes == k].tolist() == [size > 0] * (quota + 1)
        if size:
            members = [pixel for pixel in ranking if classes[pixel] == k]
            assert drawn == [members[rank % size] for rank in range(quota)]
            assert mean == pytest.approx(sum(members) / size)


@pytest.mark.parametrize("classes", [2, 3, 4, 13, 26])
@pytest.mark.parametrize("number", [256, 7])
def test_quotas_differ_by_one_at_most(classes: int, number: int) -> None:
    pixels = torch.arange(classes).repeat(2).view(1, 2, classes)
    features = pixels.unsqueeze(1).float()
    samples = sample(features, pixels, pixels >= 0, torch.rand(pixels.shape), classes, number)
    quotas = torch.bincount(samples.classes) - 1  # without the means
    assert quotas.sum() == number
    assert quotas.max() - quotas.min() <= 1
    assert quotas.min() == number // classes


def test_rows_of_an_absent_class_are_copies_of_drawn_ones(dims: int) -> None:
    samples, *_ = draw(dims)
    valid_rows = {tuple(row) for row in samples.features[samples.valid].tolist()}
    absent_rows = {tuple(row) for row in samples.features[samples.classes == 1].tolist()}
    assert not samples.valid[samples.classes == 1].any()
    assert absent_rows <= valid_rows


def test_sample_repeats_where_a_class_has_too_few() -> None:
    features = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    classes = torch.tensor([[[0, 0, 0, 1]]])
    everywhere = torch.ones_like(classes, dtype=torch.bool)
    samples = sample(features, classes, everywhere, torch.rand(1, 1, 4), 2, 10)
    assert samples.features[samples.classes == 0].flatten()[:5].unique().tolist() == [1.0, 2.0, 3.0]
    assert samples.features[samples.classes == 1].flatten().tolist() == [4.0] * 6


def test_sampling_follows_the_order_uniformly() -> None:
    torch.manual_seed(0)
    features, classes = torch.arange(10.0).view(1, 1, 2, 5), torch.zeros(1, 2, 5, dtype=torch.long)
    counts = torch.zeros(10)
    for _ in range(600):
        drawn = sample(features, classes, classes == 0, torch.rand(1, 2, 5), 1, 4).features[:-1]
        counts[drawn.flatten().long()] += 1
    # Four standard deviations of a frequency of 0.4 over 600 draws.
    assert ((counts / 600 - 0.4).abs() < 0.08).all()


def test_projecting_samples_equals_sampling_projections(dims: int) -> None:
    """The reason for sampling first: the same numbers at a thousandth of the cost."""
    torch.manual_seed(0)
    projection = Projection(3, 8).eval()
    space = (6, 5, 4)[:dims]
    features, classes = torch.randn(2, 3, *space), torch.randint(3, (2, *space))
    order = torch.rand(2, *space)
    all_rows = projection(features.movedim(1, -1).reshape(-1, 3))
    all_projected = all_rows.view(2, *space, 8).movedim(-1, 1)
    everywhere = torch.ones_like(order, dtype=torch.bool)
    first = sample(features, classes, everywhere, order, 3, 9)
    after = sample(all_projected, classes, everywhere, order, 3, 9)
    # Without the class means: the projection of a mean is not the mean of the projections.
    pixels = torch.tensor([True, True, True, False] * 3)
    projected = projection(first.features)
    torch.testing.assert_close(projected[pixels], after.features[pixels])
    assert projected.norm(dim=1).allclose(torch.ones(12))


def rows(classes: list[int], valid: list[bool], width: int = 4) -> tuple[torch.Tensor, Samples]:
    vectors = torch.nn.functional.normalize(torch.randn(len(classes), width), dim=1)
    return vectors.requires_grad_(), Samples(
        torch.empty(0), torch.tensor(classes), torch.tensor(valid)
    )


@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_contrast_against_a_loop(temperature: float) -> None:
    torch.manual_seed(0)
    a, anchor = rows([0, 0, 1, 2, 3], [True, True, True, True, False])
    u, other = rows([0, 1, 1, 3, 2, 0], [True, True, True, True, False, True])
    terms = []
    for i, k in enumerate(anchor.classes.tolist()):
        if not anchor.valid[i]:
            continue
        scores = {}
        for j in range(len(u)):
            if other.valid[j]:
                products = [x * y for x, y in zip(a[i].tolist(), u[j].tolist(), strict=True)]
                scores[j] = sum(products) / temperature
        positives = [j for j in scores if other.classes[j] == k]
        if positives:  # class 2 has no valid one and is left out
            total = math.log(sum(math.exp(s) for s in scores.values()))
            terms.append(sum(scores[j] - total for j in positives) / len(positives))
    expected = -sum(terms) / len(terms)
    assert contrast(a, u, anchor, other, temperature).item() == pytest.approx(expected, abs=1e-5)


def test_contrast_without_valid_samples_is_0_with_a_finite_gradient() -> None:
    a, anchor = rows([0, 1], [True, True])
    u, other = rows([0, 1], [False, False])
    loss = contrast(a, u, anchor, other, 1.0)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(a.grad, torch.zeros_like(a))
    assert torch.equal(u.grad, torch.zeros_like(u))


def test_contrast_pulls_classes_together() -> None:
    vectors, samples = rows([0, 1], [True, True])
    matching = contrast(vectors, vectors.detach(), samples, samples, 0.1)
    swapped = contrast(vectors, vectors.detach().flip(0), samples, samples, 0.1)
    assert matching.item() < swapped.item()
