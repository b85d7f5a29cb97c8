"""Process items in three steps that run at the same time, each on another item."""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")


def run_pipeline(
    items: Iterable[S],
    read: Callable[[S], T],
    compute: Callable[[T], U],
    finish: Callable[[U], V],
) -> Generator[Future[V]]:
    """Yield the outcome of `finish(compute(read(item)))` for every item, in order.

    `compute` runs in the calling thread. Meanwhile one thread reads the next item and another
    finishes the previous one, so at most three items are in memory. An exception is the outcome of
    its item: `result()` raises it, and the other items are processed all the same.

    If `compute` is interrupted, the steps that are running are completed before the exception is
    raised, so that no file is left half-written. Whoever stops early closes the generator, which
    waits for them too.
    """
    with (
        ThreadPoolExecutor(1, thread_name_prefix="read") as reader,
        ThreadPoolExecutor(1, thread_name_prefix="finish") as finisher,
    ):
        loaded = _one_ahead(reader, read, items)
        computed = (_apply(compute, item) for item in loaded)
        yield from _one_ahead(finisher, lambda item: finish(item.result()), computed)


def _one_ahead(
    pool: Executor, function: Callable[[S], T], arguments: Iterable[S]
) -> Iterator[Future[T]]:
    """Yield `function(argument)` for every argument, after submitting the next one to `pool`."""
    previous: Future[T] | None = None
    for argument in arguments:
        current = pool.submit(function, argument)
        if previous is not None:
            yield previous
        previous = current
    if previous is not None:
        yield previous


def _apply(function: Callable[[S], T], argument: Future[S]) -> Future[T]:
    """Return the outcome of `function(argument.result())`, which runs at once."""
    outcome: Future[T] = Future()
    try:
        outcome.set_result(function(argument.result()))
    except Exception as error:
        outcome.set_exception(error)
    return outcome
