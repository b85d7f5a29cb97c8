"""Streams: item k depends on (seed, stream, k) only; every item once an epoch; labels only where asked for."""

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


def test_batches_do_not_depend_on_what_was_read_before(make_store: MakeStore, dims: int) -> None:
    store = make_store(groups=5, dims=dims)
    frame = Frame(patch=(16,) * dims)
    one, two = (
        Stream(Dataset(store, list(store.cases), frame, labeled=True), 3, seed=7, number=0)
        for _ in range(2)
    )
    in_order = [one.batch(step) for step in range(6)]
    for step in (5, 2, 0, 4):
        for a, b in zip(in_order[step], two.batch(step), strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(a, b)
    other = Stream(one.dataset, 3, seed=8, number=0)
    assert not torch.equal(other.batch(0)[0], in_order[0][0])


def test_every_item_once_an_epoch(make_store: MakeStore) -> None:
    store = make_store(groups=5)
    stream = Stream(
        Dataset(store, list(store.cases), Frame(resize=(32, 32)), labeled=False),
        5,
        seed=0,
        number=1,
    )
    whole = {store.image(case).tobytes() for case in store.cases}
    orders = []
    for epoch in range(4):
        images, label = stream.batch(epoch)
        assert label is None
        orders.append([image.numpy().tobytes() for image in images])
        assert set(orders[-1]) == whole
    assert any(order != orders[0] for order in orders)


def test_crops_follow_the_label_and_reach_the_edges(make_store: MakeStore, dims: int) -> None:
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


def test_smaller_cases_are_padded_evenly(make_store: MakeStore, dims: int) -> None:
    store = make_store(groups=1, dims=dims, shape=(10,) * dims)
    item = Dataset(store, ["p00"], Frame(patch=(16,) * dims), labeled=True).item(
        0, np.random.default_rng(0)
    )
    assert item.image.shape == (1, *[16] * dims)
    inner = (slice(3, 13),) * dims
    assert np.array_equal(item.image[0].numpy()[inner], store.image("p00")[0])
    assert item.image.sum().item() == pytest.approx(store.image("p00").sum(), rel=1e-5)


def test_volumes_become_slices_for_a_2d_network(make_store: MakeStore) -> None:
    store = make_store(groups=2, dims=3, shape=(3, 16, 20))
    dataset = Dataset(store, list(store.cases), Frame(resize=(16, 16)), labeled=True)
    assert dataset.items == [(case, z) for case in ("p00", "p01") for z in range(3)]
    assert dataset.item(4, np.random.default_rng(0)).image.shape == (1, 16, 16)


def test_resized_items_are_kept_while_there_is_room(make_store: MakeStore) -> None:
    store = make_store(groups=3)
    size = 32 * 32 * (4 + 1)  # a float32 image and its label
    dataset = Dataset(
        store, list(store.cases), Frame(resize=(32, 32)), labeled=True, cache_bytes=2 * size
    )
    kept = [
        dataset.item(k, np.random.default_rng(0)) is dataset.item(k, np.random.default_rng(0))
        for k in range(3)
    ]
    assert kept == [True, True, False]
    crops = Dataset(
        store, list(store.cases), Frame(patch=(16, 16)), labeled=True, cache_bytes=10 * size
    )
    assert (
        len(
            {
                crops.item(0, np.random.default_rng(seed)).image.numpy().tobytes()
                for seed in range(9)
            }
        )
        > 1
    )


def test_a_3d_frame_over_2d_images_is_refused(make_store: MakeStore) -> None:
    with pytest.raises(UsageError, match=r"data\.frame has 3 sizes, the cases of toy have 2 axes"):
        Dataset(make_store(), ["p00"], Frame(patch=(16, 16, 16)), labeled=True)


def test_prefetch_keeps_order_and_hands_errors_over() -> None:
    assert list(Prefetch(lambda step: step * step, 2, 7)) == [4, 9, 16, 25, 36]

    def fail(step: int) -> int:
        if step == 3:
            raise OSError("disk gone")
        return step

    got = []
    with pytest.raises(OSError, match="disk gone"):
        got.extend(iter(Prefetch(fail, 0, 9)))
    assert got == [0, 1, 2]


def test_prefetch_closes_early() -> None:
    prefetch = Prefetch(lambda step: step, 0, 10**9)
    assert next(iter(prefetch)) == 0
    prefetch.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
