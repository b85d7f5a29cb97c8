"""Prepared again while a run trains: identical data changes nothing, other data ends the run."""

import shutil

import msgspec
import numpy as np
import pytest

from crkd_cli.data.store import Store, StoreError, write_index
from crkd_cli.errors import UsageError
from crkd_cli.paths import replace_folder
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.training.loop import StepCallback
from tests.training.helpers import Planner, assert_equal, train_plan, weights

SETTINGS = ("method=supervised", "train.steps=8", "train.eval_every=2")
pytestmark = pytest.mark.parametrize("dims", [2], indirect=True)


def replace_store_after(store: Store, step: int, changed: tuple[str, ...]) -> StepCallback:
    """A step callback that prepares the store again, with other images of the changed cases."""

    def report(done: int, values: dict[str, float]) -> None:
        if done != step:
            return
        copy = store.root.with_name("copy")
        shutil.copytree(store.root, copy)
        cases = dict(store.cases)
        for case in changed:
            file = copy / "images" / f"{case}.npy"
            np.save(file, 1 - np.load(file))
            cases[case] = msgspec.structs.replace(cases[case], sha256="1" * 64)
        write_index(copy, msgspec.structs.replace(store.index, cases=tuple(cases.values())))
        replace_folder(copy, store.root)

    return report


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(("p00", "p01"), marks=pytest.mark.slow),
        pytest.param(("p07",), marks=pytest.mark.slow),
        ("p09",),
    ],
    ids=str,
)
def test_other_data_ends_a_run(tiny: Planner, changed: tuple[str, ...]) -> None:
    """Whether it trains on the changed cases, validates on them, or does neither."""
    planned = tiny(*SETTINGS)
    last = planned.folder / "last.pth"
    message = rf"was prepared from other data while .*; {last} contains the training until then"
    with pytest.raises(StoreError, match=message):
        train_plan(planned, replace_store_after(planned.store, 3, changed))
    done = load_checkpoint(last)
    assert 3 <= done.step <= 7
    assert done.best is None or done.best["step"] == 2
    with pytest.raises(UsageError, match=rf"has changed: {len(changed)} images? differ"):
        tiny(*SETTINGS)


@pytest.mark.slow
def test_what_was_saved_is_as_if_nothing_had_happened(tiny: Planner) -> None:
    stopped = tiny(*SETTINGS, out="stopped", stop_after=4)
    train_plan(stopped)
    planned = tiny(*SETTINGS)
    with pytest.raises(StoreError):
        train_plan(planned, replace_store_after(planned.store, 3, ("p09",)))
    assert load_checkpoint(planned.folder / "last.pth").step == 4
    assert_equal(weights(planned.folder), weights(stopped.folder))


@pytest.mark.slow
def test_the_same_data_changes_nothing(tiny: Planner) -> None:
    whole, disturbed = tiny(*SETTINGS, out="whole"), tiny(*SETTINGS)
    train_plan(whole)
    train_plan(disturbed, replace_store_after(disturbed.store, 3, ()))
    assert_equal(weights(disturbed.folder), weights(whole.folder))
