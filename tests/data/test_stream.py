"""Streams: item k depends only on (seed, stream, k), and every item occurs once per epoch."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from crkd_cli.config import Frame
from crkd_cli.data.dataset import Dataset
from crkd_cli.data.store import Store
from crkd_cli.data.stream import Prefetch, Stream
from crkd_cli.errors import UsageError

MakeStore = Callable[..., Store]


def test_batches_do_not_depend_on_earlier_ones(make_store: MakeStore, dims: int) -> None:
    store = make_store(groups=5, dims=dims)
    frame = Frame(patch=(16,) * dims)
    dataset = Dataset(store, list(store.cases), frame, labeled=True)
    first = Stream(dataset, 3, seed=7, number=0)
    second = Stream(dataset, 3, seed=7, number=0)
    in_order = [first.batch(step) for step in range(6)]
    for step in (5, 2, 0, 4):
        for a, b in zip(in_order[step], second.batch(step), strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(a, b)
    other = Stream(dataset, 3, seed=8, number=0)
    assert not torch.equal(other.batch(0)[0], in_order[0][0])


def test_every_item_occurs_once_per_epoch(make_store: MakeStore) -> None:
    store = make_store(groups=5)
    dataset = Dataset(store, list(store.cases), Frame(resize=(32, 32)), labeled=False)
    stream = Stream(dataset, 5, seed=0, number=1)
    expected = {store.image(case).tobytes() for case in store.cases}
    orders = []
    for epoch in range(4):
        images, label = stream.batch(epoch)
        assert label is None
        orders.append([image.numpy().tobytes() for image in images])
        assert set(orders[-1]) == expected
    assert any(order != orders[0] for order in orders)


def test_crops_of_image_and_label_match_and_reach_the_edges(
    make_store: MakeStore, dims: int
) -> None:
    store = make_store(groups=1, dims=dims, shape=(20, 17, 24)[:dims])
    dataset = Dataset(store, list(store.cases), Frame(patch=(16,) * dims), labeled=True)
    image, label = store.image("p00")[0], store.label("p00")
    windows = {}
    for corner in np.ndindex(*[side - 15 for side in image.shape]):
        crop = tuple(slice(a, a + 16) for a in corner)
        windows[image[crop].tobytes()] = (corner, label[crop])
    corners = []
    for seed in range(300):
        item = dataset.item(0, np.random.default_rng(seed))
        corner, expected = windows[item.image[0].numpy().tobytes()]
        assert item.label is not None
        assert np.array_equal(item.label.numpy(), expected)
        corners.append(corner)
    assert np.array_equal(np.min(corners, axis=0), [0] * dims)
    assert np.array_equal(np.max(corners, axis=0), [side - 16 for side in image.shape])


def test_smaller_cases_are_padded_on_both_sides(make_store: MakeStore, dims: int) -> None:
    store = make_store(groups=1, dims=dims, shape=(10,) * dims)
    dataset = Dataset(store, ["p00"], Frame(patch=(16,) * dims), labeled=True)
    item = dataset.item(0, np.random.default_rng(0))
    assert item.image.shape == (1, *[16] * dims)
    inner = (slice(3, 13),) * dims
    assert np.array_equal(item.image[0].numpy()[inner], store.image("p00")[0])
    assert item.image.sum().item() == pytest.approx(store.image("p00").sum(), rel=1e-5)


def test_a_2d_frame_cuts_volumes_into_slices(make_store: MakeStore) -> None:
    store = make_store(groups=2, dims=3, shape=(3, 16, 20))
    dataset = Dataset(store, list(store.cases), Frame(resize=(16, 16)), labeled=True)
    assert dataset.items == [(case, z) for case in ("p00", "p01") for z in range(3)]
    assert dataset.item(4, np.random.default_rng(0)).image.shape == (1, 16, 16)


def test_resized_items_are_cached_up_to_the_limit(make_store: MakeStore) -> None:
    store = make_store(groups=3)
    size = 32 * 32 * (4 + 1)  # a float32 image and its label
    cases, rng = list(store.cases), np.random.default_rng(0)
    resize, patch = Frame(resize=(32, 32)), Frame(patch=(16, 16))
    dataset = Dataset(store, cases, resize, labeled=True, cache_bytes=2 * size)
    cached = [dataset.item(k, rng) is dataset.item(k, rng) for k in range(3)]
    assert cached == [True, True, False]
    dataset = Dataset(store, cases, patch, labeled=True, cache_bytes=10 * size)
    crops = {dataset.item(0, rng).image.numpy().tobytes() for _ in range(9)}
    assert len(crops) > 1


def test_a_3d_frame_for_2d_images_is_an_error(make_store: MakeStore) -> None:
    with pytest.raises(
        UsageError, match=r"data\.frame has 3 sizes, but the cases of toy have 2 axes; give 2 sizes"
    ):
        Dataset(make_store(), ["p00"], Frame(patch=(16, 16, 16)), labeled=True)


def test_prefetch_keeps_the_order_and_raises_errors() -> None:
    assert list(Prefetch(lambda step: step * step, 2, 7)) == [4, 9, 16, 25, 36]

    def fail(step: int) -> int:
        if step == 3:
            raise OSError("disk gone")
        return step

    results = []
    with pytest.raises(OSError, match="disk gone"):
        results.extend(iter(Prefetch(fail, 0, 9)))
    assert results == [0, 1, 2]


def test_prefetch_can_be_closed_early() -> None:
    prefetch = Prefetch(lambda step: step, 0, 10**9)
    assert next(iter(prefetch)) == 0
    prefetch.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
