"""Symmetric CutMix: boxes of the stated sizes that lie inside, swapped alike in everything that belongs together."""

import pytest
import torch

from crkd_cli.augment.mix import box_sides, draw_boxes, draw_swap, swap


def test_box_sides_by_hand() -> None:
    # 2D: √(a/r), √(a·r) of a = 0.16, r = 4.  3D: ∛(v/r), ∛(v·r), ∛v of v = 0.064, r = 8.
    torch.testing.assert_close(box_sides(torch.tensor([0.16]), torch.tensor([4.0]), 2), torch.tensor([[0.2, 0.8]]))
    torch.testing.assert_close(box_sides(torch.tensor([0.064]), torch.tensor([8.0]), 3), torch.tensor([[0.2, 0.8, 0.4]]))


def test_boxes_lie_inside_and_cover_the_stated_share(dims: int) -> None:
    torch.manual_seed(0)
    low, high = draw_boxes(4000, dims)
    assert (low >= 0).all()
    assert (high <= 1 + 1e-6).all()
    fraction = (high - low).prod(1)
    assert fraction.min() >= 0.02 - 1e-6
    assert fraction.max() <= 0.4 + 1e-6
    assert fraction.mean().item() == pytest.approx(0.21, abs=0.01)    # of a uniform draw in [0.02, 0.4]


@pytest.mark.parametrize("batch", [2, 5])
def test_pairs_swap_one_box(batch: int, dims: int) -> None:
    torch.manual_seed(1)
    space = (24, 16, 12)[:dims]    # unequal sides: a box drawn in the wrong order of axes would stick out
    shares = []
    for _ in range(60):
        partner, box = draw_swap(torch.Size((batch, 1, *space)), torch.device("cpu"))
        assert torch.equal(partner[partner], torch.arange(batch))
        assert (partner == torch.arange(batch)).sum() == batch % 2    # the odd one is alone
        assert torch.equal(box[partner], box)
        shares.append(box[partner != torch.arange(batch)].float().mean().item())
        for one in box:
            assert int(one.sum()) == _bounding(one)    # a full box
    assert sum(shares) / len(shares) == pytest.approx(0.5 * 0.21, abs=0.04)    # half of the pairs swap


def _bounding(mask: torch.Tensor) -> int:
    where = mask.nonzero()
    return int((where.amax(0) - where.amin(0) + 1).prod()) if len(where) else 0


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
