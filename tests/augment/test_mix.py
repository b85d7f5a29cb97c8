"""CutMix: boxes have the stated sizes, lie inside the image and are swapped consistently."""

import numpy as np
import pytest
import torch

from crkd_cli.augment.mix import (
    box_size,
    draw_box,
    draw_boxes,
    draw_cutmix,
    draw_mix,
    draw_swap,
    mix,
    swap,
)


def test_box_size_by_hand() -> None:
    # 2D: √(a/r), √(a·r) of a = 0.16, r = 4.  3D: ∛(v/r), ∛(v·r), ∛v of v = 0.064, r = 8.
    flat = box_size(torch.tensor([0.16]), torch.tensor([4.0]), 2)
    torch.testing.assert_close(flat, torch.tensor([[0.2, 0.8]]))
    solid = box_size(torch.tensor([0.064]), torch.tensor([8.0]), 3)
    torch.testing.assert_close(solid, torch.tensor([[0.2, 0.8, 0.4]]))


def test_boxes_lie_inside_and_cover_the_stated_share(dims: int) -> None:
    torch.manual_seed(0)
    low, high = draw_boxes(4000, dims, torch.device("cpu"))
    assert (low >= 0).all()
    assert (high <= 1 + 1e-6).all()
    fraction = (high - low).prod(1)
    assert fraction.min() >= 0.02 - 1e-6
    assert fraction.max() <= 0.4 + 1e-6
    # The mean of a uniform draw from [0.02, 0.4].
    assert fraction.mean().item() == pytest.approx(0.21, abs=0.01)


@pytest.mark.parametrize("batch", [2, 5])
def test_pairs_swap_one_box(batch: int, dims: int) -> None:
    torch.manual_seed(1)
    # With unequal sides, a box whose axes are mixed up would stick out.
    space = (24, 16, 12)[:dims]
    shares = []
    for _ in range(60):
        partner, box = draw_swap(torch.Size((batch, 1, *space)), torch.device("cpu"))
        assert torch.equal(partner[partner], torch.arange(batch))
        assert (partner == torch.arange(batch)).sum() == batch % 2  # the odd one has no partner
        assert torch.equal(box[partner], box)
        shares.append(box[partner != torch.arange(batch)].float().mean().item())
        for mask in box:
            assert int(mask.sum()) == bounding_box_size(mask)  # a filled box
    # Half of the pairs swap.
    assert sum(shares) / len(shares) == pytest.approx(0.5 * 0.21, abs=0.04)


def bounding_box_size(mask: torch.Tensor) -> int:
    pixels = mask.nonzero()
    if not len(pixels):
        return 0
    return int((pixels.amax(0) - pixels.amin(0) + 1).prod())


def test_swap_exchanges_and_is_its_own_inverse(dims: int) -> None:
    torch.manual_seed(3)
    space = [8] * dims
    image = torch.rand(4, 2, *space)
    label = image[:, 0].clone()
    partner, box = draw_swap(image.shape, image.device, probability=1.0)
    mixed = swap(image, partner, box)
    assert not torch.equal(mixed, image)
    torch.testing.assert_close(swap(label, partner, box), mixed[:, 0])
    torch.testing.assert_close(swap(mixed, partner, box), image)
    first = mixed[0].movedim(0, -1)
    assert torch.equal(first[box[0]], image[partner[0]].movedim(0, -1)[box[0]])
    assert torch.equal(first[~box[0]], image[0].movedim(0, -1)[~box[0]])


def test_every_sample_has_its_own_box_or_none(dims: int) -> None:
    torch.manual_seed(2)
    space = (24, 16, 12)[:dims]
    box = draw_mix(torch.Size((400, 1, *space)), torch.device("cpu"))
    shares = box.flatten(1).float().mean(1)
    assert all(int(mask.sum()) == bounding_box_size(mask) for mask in box)
    assert (shares > 0).float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert shares[shares > 0].mean().item() == pytest.approx(0.21, abs=0.03)
    assert len({mask.numpy().tobytes() for mask in box}) > 150


@pytest.mark.parametrize("batch", [2, 3, 12])
def test_cutmix_takes_from_another_sample(batch: int, dims: int) -> None:
    torch.manual_seed(5)
    space = (24, 16, 12)[:dims]
    image = torch.arange(batch).view(-1, 1, *[1] * dims).expand(-1, 1, *space)
    boxes = set()
    for _ in range(20):
        partner, box = draw_cutmix(image.shape, image.device)
        assert sorted(partner.tolist()) == [*range(batch)]
        mixed = swap(image, partner, box)[:, 0]
        assert torch.equal(mixed != image[:, 0], box)
        assert all(int(mask.sum()) == bounding_box_size(mask) for mask in box)
        boxes |= {mask.numpy().tobytes() for mask in box}
    assert len(boxes) > 15 * batch


def test_cutmix_boxes_are_distributed_like_those_of_the_released_program(dims: int) -> None:
    """Drawn again by NumPy in large images: sides ⌊S √(1 − λ)⌋, centers from ⌊S/8⌋ to S − 1."""
    torch.manual_seed(6)
    space, count = (64, 48, 40)[:dims], (800, 120)[dims - 2]
    shares, starts = [], []
    for _ in range(count):
        _, box = draw_cutmix(torch.Size((2, 1, *space)), torch.device("cpu"))
        shares += box.flatten(1).float().mean(1).tolist()
        starts += box.flatten(1, -2).any(1).int().argmax(1).tolist()  # along the last axis
    rng = np.random.default_rng(6)
    sides = 20 * np.array(space)
    half = (sides * np.sqrt(1 - rng.beta(4, 4, (20000, 1)))).astype(int) // 2
    center = rng.integers(sides // 8, sides, (20000, dims))
    low, high = np.clip(center - half, 0, sides), np.clip(center + half, 0, sides)
    expected, expected_start = ((high - low) / sides).prod(1), low[:, -1] / 20
    chance = 4 / count**0.5  # standard errors, of one side per batch
    assert np.mean(shares) == pytest.approx(expected.mean(), abs=chance * expected.std())
    assert np.std(shares) == pytest.approx(expected.std(), abs=chance * expected.std())
    assert np.mean(starts) == pytest.approx(
        expected_start.mean(), abs=chance / 2 * expected_start.std()
    )


def test_a_common_box_has_the_stated_sides_and_lies_anywhere(dims: int) -> None:
    torch.manual_seed(4)
    space = torch.Size((112, 80, 16)[:dims])
    starts = []
    for _ in range(200):
        box = draw_box(space, torch.device("cpu"), 2 / 3)
        pixels = box[0].nonzero()
        assert (pixels.amax(0) - pixels.amin(0) + 1).tolist() == [74, 53, 10][:dims]  # ⌊2/3 · S⌋
        assert int(box.sum()) == bounding_box_size(box[0])
        starts.append(pixels.amin(0))
    assert torch.stack(starts)[:, -1].unique().numel() >= 6
    assert (torch.stack(starts) + torch.tensor([74, 53, 10][:dims]) <= torch.tensor(space)).all()


def test_mix_takes_the_box_from_the_other(dims: int) -> None:
    zeros, ones = torch.zeros(2, 3, *[4] * dims), torch.ones(2, 3, *[4] * dims)
    box = torch.rand(2, *[4] * dims) < 0.5
    assert torch.equal(mix(zeros, ones, box), box.unsqueeze(1).expand_as(zeros).float())
    assert torch.equal(mix(zeros[:, 0], ones[:, 0], box), box.float())
    common = box[:1]
    assert torch.equal(mix(zeros, ones, common), common.unsqueeze(1).expand_as(zeros).float())
