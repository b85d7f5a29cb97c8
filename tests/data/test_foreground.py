"""Foreground sampling: which voxels are recorded, and which patches hold foreground."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from crkd_cli import world
from crkd_cli.config import Frame
from crkd_cli.data.cases import seed_of
from crkd_cli.data.dataset import Dataset
from crkd_cli.data.foreground import POSITIONS, choose_position, sample_positions
from crkd_cli.data.store import (
    RECIPE,
    CaseInfo,
    ChannelInfo,
    DatasetSpec,
    Index,
    Store,
    numbered_classes,
    write_index,
)
from crkd_cli.data.stream import Stream

CLASSES = ("background", "liver", "spleen", "tumor")
IGNORED = len(CLASSES)


@pytest.fixture
def store(tmp_path: Path, rng: np.random.Generator) -> Store:
    """Three volumes with a few small objects: b lacks the tumor, c has no foreground.

    The value of a voxel in the image is its index.
    """
    shape = (12, 40, 44)
    labels = {case: np.zeros(shape, np.uint8) for case in "abc"}
    for case in "ab":
        labels[case][2:4, :3, :5] = 1
        labels[case][7, 20:22, 41:] = 2
        labels[case][0, 5:9, 5:9] = IGNORED
    labels["a"][11, 39, 43] = 3
    for folder in ("images", "labels", "foreground"):
        (tmp_path / folder).mkdir()
    cases = []
    for case, label in labels.items():
        image = np.arange(label.size, dtype=np.float32).reshape(1, *shape)
        np.save(tmp_path / f"images/{case}.npy", image)
        np.save(tmp_path / f"labels/{case}.npy", label)
        positions = sample_positions(label, len(CLASSES), seed_of(case))
        np.save(tmp_path / f"foreground/{case}.npy", positions)
        cases.append(
            CaseInfo(
                id=case,
                group=case,
                shape=shape,
                spacing_mm=None,
                source=case,
                sha256="0" * 64,
                label_sha256="0" * 64,
                intensity=(),
            )
        )
    spec = DatasetSpec(
        name="organs",
        source="folder",
        classes=numbered_classes(CLASSES),
        channels=(ChannelInfo(modality="MR", intensity="zscore"),),
        dims=3,
    )
    write_index(tmp_path, Index(recipe=RECIPE, spec=spec, cases=tuple(cases)))
    return Store(tmp_path)


def test_recorded_voxels_have_the_class_that_is_stated(rng, dims):
    label = rng.choice(5, (30, 60, 70)[-dims:], p=[0.5, 0.47, 0.01, 0.0, 0.02]).astype(np.uint8)
    numbers, *axes = sample_positions(label, 4, 7)  # 4 marks ignored voxels
    assert np.array_equal(label[tuple(axes)], numbers)
    assert (np.diff(numbers) >= 0).all()
    assert len(set(zip(*axes, strict=True))) == len(numbers)
    expected = np.minimum(np.bincount(label.ravel())[1:4], POSITIONS).tolist()
    assert [(numbers == k).sum() for k in (1, 2, 3)] == expected
    assert np.array_equal(sample_positions(label, 4, 7), np.stack([numbers, *axes]))
    assert not np.array_equal(sample_positions(label, 4, 8), np.stack([numbers, *axes]))


def test_recorded_voxels_are_spread_evenly():
    _, *axes = sample_positions(np.ones((40, 50, 60), np.uint8), 2, 0)
    for axis, side in zip(axes, (40, 50, 60), strict=True):
        quarters = np.bincount(axis * 4 // side)
        assert np.allclose(quarters, POSITIONS / 4, atol=5 * np.sqrt(POSITIONS * 3 / 16))


def test_the_turns_go_through_25_classes_whatever_their_sizes(rng):
    """Class k has 1 to 5,000 pixels; class 13 is absent, and others take its turns."""
    sizes = [0 if k == 13 else max(1, int(5000 / 1.5**k)) for k in range(1, 26)]
    label = np.zeros(20_000, np.uint8)
    label[: sum(sizes)] = np.repeat(np.arange(1, 26), sizes)
    label = rng.permutation(label).reshape(100, 200)
    positions = sample_positions(label, 26, 0)
    others = set()
    for turn in range(250):
        chosen = choose_position(positions, turn, 26, np.random.default_rng(turn))
        if 1 + turn % 25 == 13:
            others.add(label[chosen])
        else:
            assert label[chosen] == 1 + turn % 25
    assert 13 not in others
    assert len(others) > 5


@pytest.mark.parametrize("share", [0.33, 0.5, 1.0])
def test_the_share_of_chosen_patches_and_the_turns_of_the_classes(store, share, monkeypatch):
    dataset = Dataset(store, ["a", "b"], Frame(patch=(4, 8, 8)), labeled=True)
    turns: list[int | None] = []
    monkeypatch.setattr(dataset, "item", lambda number, rng, turn: turns.append(turn))
    stream = Stream(dataset, 4, 1, 0, share)
    for k in range(2000):
        stream._item(k)
    chosen = [turn for turn in turns if turn is not None]
    assert len(chosen) / 2000 == pytest.approx(share, abs=0.001)
    assert chosen == list(range(len(chosen)))
    flags = [flag for step in range(500) for flag in stream.chosen(step)]
    assert flags == [turn is not None for turn in turns]


@pytest.mark.parametrize("patch", [(4, 8, 16), (16, 48, 48), (8, 8)])
def test_chosen_patches_hold_the_class_whose_turn_it_is(store, patch):
    dataset = Dataset(store, ["a", "b", "c"], Frame(patch=patch), labeled=True)
    held: dict[str, Counter[int]] = {case: Counter() for case in "abc"}
    for k in range(300):
        number = k % len(dataset)
        rng = np.random.default_rng(k)
        item = dataset.item(number, rng, k // len(dataset))
        assert item.label is not None
        assert item.image.shape[1:] == item.label.shape == patch
        classes = set(np.unique(item.label.numpy()).tolist()) - {0, IGNORED}
        case, _ = dataset.items[number]
        wanted = 1 + k // len(dataset) % 3
        if case == "c":
            assert not classes
        elif case == "a" or wanted != 3:
            assert wanted in classes
        assert case == "c" or classes
        held[case][wanted] += 1
    assert all(len(counts) >= 3 for counts in held.values())


def test_a_chosen_voxel_lies_anywhere_in_the_patch(store):
    """The tumor is one voxel, in the last corner."""
    dataset = Dataset(store, ["a"], Frame(patch=(4, 16, 16)), labeled=True)
    corners = {1: set(), 2: set(), 3: set()}
    for seed in range(400):
        item = dataset.item(0, np.random.default_rng(seed), seed % 3)
        first = int(item.image[0, 0, 0, 0])
        corners[1 + seed % 3].add(np.unravel_index(first, (12, 40, 44)))
    assert corners[3] == {(8, 24, 28)}  # the only patch that holds it
    spleen = np.array(list(corners[2]))
    assert spleen.min(0).tolist() == [4, 5, 26]  # two voxels thick
    assert spleen.max(0).tolist() == [7, 21, 28]


def test_of_a_volume_a_slice_with_the_class_is_chosen(store):
    for frame in (Frame(patch=(16, 16)), Frame(resize=(48, 48))):
        dataset = Dataset(store, ["b", "a"], frame, labeled=True, cache_bytes=10**9)
        assert len(dataset) == 24
        for turn, slices in ((0, {2, 3}), (1, {7}), (2, {11})):
            items = [dataset.item(15, np.random.default_rng(k), turn) for k in range(20)]
            if frame.resize:
                expected = {id(dataset.item(12 + z, np.random.default_rng(0))) for z in slices}
                assert {id(item) for item in items} == expected
            else:
                found = {int(item.image[0, 0, 0]) // (40 * 44) for item in items}
                assert found == slices


def test_without_foreground_sampling_nothing_changes(store):
    """The crops are those of the same draws without a voxel; coordinates are not read."""
    (store.root / "foreground/a.npy").unlink()
    dataset = Dataset(store, ["a", "b"], Frame(patch=(4, 8, 8)), labeled=True)
    stream = Stream(dataset, 2, 3, 0)
    assert stream.chosen(0) is None
    for k in range(20):
        rng = np.random.default_rng([3, 0, 1, k])
        starts = [int(rng.integers(side - size + 1)) for side, size in ((12, 4), (40, 8), (44, 8))]
        first = np.ravel_multi_index(starts, (12, 40, 44))
        assert int(stream._item(k).image[0, 0, 0, 0]) == first


def test_2d_images_that_are_resized_stay_as_they_are(make_store):
    flat = make_store(groups=2)
    dataset = Dataset(flat, ["p00", "p01"], Frame(resize=(16, 16)), labeled=True)
    for number in range(2):
        rng = np.random.default_rng(0)
        plain, chosen = dataset.item(number, rng), dataset.item(number, rng, 0)
        assert torch.equal(plain.image, chosen.image)


def test_items_do_not_depend_on_earlier_ones_or_on_the_number_of_processes(store, monkeypatch):
    dataset = Dataset(store, ["a", "b", "c"], Frame(patch=(4, 8, 8)), labeled=True)
    batches = [Stream(dataset, 4, 7, 0, 0.5).batch(step) for step in range(6)]
    fresh = Stream(dataset, 4, 7, 0, 0.5)
    for step in (5, 2, 4):
        for before, again in zip(batches[step], fresh.batch(step), strict=True):
            assert before is not None
            assert torch.equal(before, again)
    monkeypatch.setattr(world, "size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(world, "rank", lambda rank=rank: rank)
        image, _ = Stream(dataset, 4, 7, 0, 0.5).batch(3)
        assert torch.equal(image, batches[3][0][2 * rank : 2 * rank + 2])
