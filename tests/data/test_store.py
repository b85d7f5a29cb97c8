"""A store in use: damaged files are one line, and other data never mixes with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from crkd_cli.data.store import Store, StoreError, write_index
from crkd_cli.errors import CrkdError

RENEW = "run: crkd prepare-data toy --source FOLDER"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def empty(file: Path) -> None:
    """As after a power cut."""
    file.write_bytes(b"")


def change_header(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"False", b"True ", 1))


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"0")


def relabel(file: Path) -> None:
    """Class numbers that the dataset does not have."""
    np.save(file, np.full_like(np.load(file), 7))


@pytest.mark.parametrize("damage", [flip, cut, empty, change_header, grow, relabel, Path.unlink])
@pytest.mark.parametrize("folder", ["images", "labels"])
def test_a_damaged_array_is_one_line(
    make_store: Callable[..., Store], damage: Callable[[Path], None], folder: str
) -> None:
    store = make_store(groups=2)
    read = store.image if folder == "images" else store.label
    read("p00")
    file = store.root / folder / "p00.npy"
    damage(file)
    for opened in (store, Store(store.root)):  # in use already, and at its first use
        read = opened.image if folder == "images" else opened.label
        read("p01")
        with pytest.raises(StoreError) as error:
            read("p00")
        assert str(file) in str(error.value)
        assert str(error.value).endswith(RENEW)
    with pytest.raises(CrkdError, match=rf"is damaged: {folder}/p00\.npy; {RENEW}"):
        store.check(lambda amount, note: None)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        cut,
        empty,
        lambda file: file.write_bytes(file.read_bytes().replace(b'"disc"', b'"dish"')),
        lambda file: file.write_bytes(file.read_bytes().replace(b"1.0", b"1.5", 1)),
        lambda file: file.write_bytes(b"[" * 100_000),
        lambda file: file.write_bytes(b"\xff\xfe{}"),
        lambda file: file.write_bytes(b"[3]"),
    ],
    ids=range(8),
)
def test_a_damaged_index_is_one_line(
    make_store: Callable[..., Store], damage: Callable[[Path], None]
) -> None:
    root = make_store(groups=2).root
    damage(root / "index.json")
    with pytest.raises(CrkdError) as error:
        Store(root)
    assert str(root / "index.json") in str(error.value)
    assert str(error.value).endswith(RENEW)
    assert "\n" not in str(error.value)


def test_the_order_of_keys_in_the_index_does_not_matter(make_store: Callable[..., Store]) -> None:
    store = make_store(groups=2)
    file = store.root / "index.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(dict(reversed(tree.items()))), encoding="utf-8")
    assert Store(store.root).index == store.index


def replace_store(store: Store, *, other: bool) -> None:
    """Prepare the store again, from other files for one case or from the same."""
    copy = store.root.with_name("copy")
    shutil.copytree(store.root, copy)
    cases = list(store.index.cases)
    if other:
        file = copy / "images" / "p01.npy"
        np.save(file, np.load(file) / 2)
        cases[1] = msgspec.structs.replace(cases[1], sha256="1" * 64)
    write_index(copy, msgspec.structs.replace(store.index, cases=tuple(cases)))
    shutil.rmtree(store.root)
    copy.rename(store.root)


def test_the_same_data_prepared_again_changes_nothing(make_store: Callable[..., Store]) -> None:
    store = make_store(groups=2)
    before = store.image("p01")
    replace_store(store, other=False)
    store.check_unchanged()
    assert np.array_equal(store.image("p01"), before)


def test_other_data_is_not_mixed_with_a_store_in_use(make_store: Callable[..., Store]) -> None:
    store = make_store(groups=2)
    before = [store.image(case) for case in store.cases]
    kept = np.array(before[1])
    replace_store(store, other=True)
    assert np.array_equal(store.image("p00"), before[0])  # the same content
    message = f"{store.root} was prepared from other data while this command used it"
    for use in (lambda: store.image("p01"), store.check_unchanged):
        with pytest.raises(StoreError, match=message):
            use()
    assert np.array_equal(before[1], kept)
    assert not np.array_equal(Store(store.root).image("p01"), kept)
