"""Patches with a margin: the same patches, with their surroundings, or zeros beyond the case."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from crkd_cli.augment.spatial import center_crop
from crkd_cli.config import Frame
from crkd_cli.data.dataset import Dataset
from crkd_cli.data.store import Store
from tests.conftest import StoreMaker


@pytest.fixture
def volumes(make_store: StoreMaker) -> Store:
    return make_store(dims=3, groups=1, shape=(12, 40, 44))


@pytest.mark.parametrize("patch", [(4, 16, 16), (8, 8), (16, 32, 64)])
def test_the_center_of_a_patch_with_a_margin_is_the_patch_without(volumes, patch):
    plain = Dataset(volumes, ["p00"], Frame(patch=patch), labeled=True)
    source = tuple(side + 2 * axis + 3 for axis, side in enumerate(patch))
    wide = Dataset(volumes, ["p00"], Frame(patch=patch), labeled=True, source_size=source)
    for k in range(20):
        turn = k if k % 2 else None
        small = plain.item(k % len(plain), np.random.default_rng(k), turn)
        large = wide.item(k % len(wide), np.random.default_rng(k), turn)
        assert large.image.shape[1:] == large.label.shape == source
        assert torch.equal(center_crop(large.image.unsqueeze(0), patch)[0], small.image)
        assert torch.equal(center_crop(large.label[None, None], patch)[0, 0], small.label)


def test_the_margin_holds_the_surroundings_and_zeros_beyond_the_case(make_store):
    store, source = make_store(dims=3, groups=1, shape=(5, 8, 9)), (8, 8, 8)
    dataset = Dataset(store, ["p00"], Frame(patch=(4, 4, 4)), labeled=True, source_size=source)
    windows = F.pad(torch.from_numpy(np.array(store.image("p00")[0])), [4] * 6)
    for axis, side in enumerate(source):
        windows = windows.unfold(axis, side, 1)
    for k in range(10):
        item = dataset.item(0, np.random.default_rng(k))
        assert (windows == item.image).flatten(3).all(3).any()
