"""Endless batches that depend only on (seed, stream, step), so that resuming is exact."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crkd_cli import world
from crkd_cli.data.dataset import Dataset, Item

T = TypeVar("T")


class Stream:
    """Batches of a dataset in random order, with every item once per epoch.

    Item k of the stream is item (k mod n) of epoch (k div n), where n is the size of the dataset.

    Args:
        batch: Number of items per step, over all processes.
        number: Distinguishes the streams of a run that have the same seed.
        foreground: The share of items that are chosen to contain foreground, at regular intervals.
    """

    def __init__(
        self, dataset: Dataset, batch: int, seed: int, number: int, foreground: float = 0.0
    ) -> None:
        self.dataset, self.size, self.seed, self.number = dataset, batch, seed, number
        self._foreground = foreground
        self._orders: dict[int, NDArray[np.int64]] = {}  # by epoch

    def batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return this process's part of the batch of `step`.

        The image is [B, C, *S] as stored, and the label [B, *S] as stored, or None.
        """
        first = step * self.size
        items = [self._item(first + offset) for offset in world.shard(range(self.size))]
        images = torch.stack([item.image for item in items])
        labels = [item.label for item in items if item.label is not None]
        return images, torch.stack(labels) if labels else None

    def chosen(self, step: int) -> Tensor | None:
        """Return which of this process's items of `step` contain foreground by choice, as bool [B].

        Returns None if no item ever does.
        """
        if not self._foreground:
            return None
        items = world.shard(range(step * self.size, (step + 1) * self.size))
        return torch.tensor([self._turn(k) is not None for k in items])

    def _item(self, k: int) -> Item:
        epoch, position = divmod(k, len(self.dataset))
        rng = np.random.default_rng([self.seed, self.number, 1, k])
        return self.dataset.item(int(self._order(epoch)[position]), rng, self._turn(k))

    def _turn(self, k: int) -> int | None:
        """Return how many items before item k contain foreground by choice; None: k does not."""
        turn = int(k * self._foreground)
        return turn if int((k + 1) * self._foreground) > turn else None

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return the order of an epoch; the previous one is kept for batches that span both."""
        if epoch not in self._orders:
            rng = np.random.default_rng([self.seed, self.number, 0, epoch])
            order = rng.permutation(len(self.dataset))
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]


class Prefetch(Generic[T]):
    """Iterate over make(step) for the steps from `start` to `stop`, computed ahead by a thread.

    An exception in `make` is raised in the loop.
    """

    def __init__(self, make: Callable[[int], T], start: int, stop: int, depth: int = 3) -> None:
        self._make, self._steps = make, range(start, stop)
        self._ready: queue.Queue[T | BaseException] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        for _ in self._steps:
            result = self._ready.get()
            if isinstance(result, BaseException):
                raise result
            yield result

    def close(self) -> None:
        """Stop the thread."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)  # the thread may be waiting for room in the queue
            except queue.Empty:
                continue

    def _work(self) -> None:
        try:
            for step in self._steps:
                if self._closed.is_set():
                    return
                self._ready.put(self._make(step))
        except BaseException as error:  # raised in the loop, whatever it is
            self._ready.put(error)
