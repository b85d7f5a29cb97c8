"""The pipeline: its steps overlap, and its outcomes are those of one item after another."""

import threading
import weakref
from concurrent.futures import Future

import pytest

from crkd_cli.pipeline import run_pipeline

TIMEOUT = 30  # seconds, after which a step that waits for another is stuck


class Item:
    """What passes through the steps: an object whose lifetime can be observed."""

    def __init__(self, number: int) -> None:
        self.number = number


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_outcomes_are_those_of_one_item_after_another(count):
    outcomes = run_pipeline(range(count), str, lambda text: text + "1", int)
    assert [outcome.result() for outcome in outcomes] == [10 * n + 1 for n in range(count)]


def test_the_steps_of_three_items_run_at_the_same_time():
    """They wait for each other, which would take forever one after another."""
    meeting = threading.Barrier(3, timeout=TIMEOUT)

    def step(number: int, item: int) -> int:
        if item == 2 - number:  # item 2 is read, 1 computed and 0 finished
            meeting.wait()
        return item

    outcomes = run_pipeline(
        range(3), lambda item: step(0, item), lambda item: step(1, item), lambda item: step(2, item)
    )
    assert [outcome.result() for outcome in outcomes] == [0, 1, 2]


@pytest.mark.parametrize("slow", [0, 1, 2], ids=["read", "compute", "finish"])
def test_at_most_three_items_are_in_memory(slow):
    alive: weakref.WeakSet[Item] = weakref.WeakSet()
    lock = threading.Lock()
    counts = []

    def step(number: int, item: Item) -> Item:
        if number == slow:
            threading.Event().wait(0.02)
        with lock:
            alive.add(item)
            counts.append(len(alive))
        return item

    outcomes = run_pipeline(
        range(8),
        lambda number: step(0, Item(number)),
        lambda item: step(1, item),
        lambda item: step(2, item).number,
    )
    assert [outcome.result() for outcome in outcomes] == list(range(8))
    assert max(counts) <= 3


@pytest.mark.parametrize("failing", [0, 1, 2], ids=["read", "compute", "finish"])
def test_an_error_is_the_outcome_of_its_item_alone(failing):
    def step(number: int, item: int) -> int:
        if number == failing and item in (0, 3):
            raise ValueError(f"item {item}")
        return item

    def result(outcome: Future[int]) -> int | str:
        try:
            return outcome.result()
        except ValueError as error:
            return str(error)

    outcomes = run_pipeline(
        range(5), lambda item: step(0, item), lambda item: step(1, item), lambda item: step(2, item)
    )
    assert [result(outcome) for outcome in outcomes] == ["item 0", 1, 2, "item 3", 4]


def test_an_interruption_waits_for_the_steps_that_are_running():
    started, interrupted = threading.Event(), threading.Event()
    finished = []

    def compute(item: int) -> int:
        if item == 1:
            assert started.wait(TIMEOUT)
            interrupted.set()
            raise KeyboardInterrupt
        return item

    def finish(item: int) -> None:
        started.set()
        assert interrupted.wait(TIMEOUT)
        finished.append(item)

    with pytest.raises(KeyboardInterrupt):
        list(run_pipeline(range(100), lambda item: item, compute, finish))
    assert finished == [0]
