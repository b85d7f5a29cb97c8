"""Endless batches whose content depends only on (seed, stream, position): resuming needs no loader state and is exact."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from crkd_cli import world
from crkd_cli.data.dataset import Dataset, Item

T = TypeVar("T")


class Stream:
    """Batches of a data set in random order, every item once an epoch. Item k is number k mod n of epoch k div n."""

    def __init__(self, dataset: Dataset, batch: int, seed: int, number: int) -> None:
        self.dataset, self.size, self.seed, self.number = dataset, batch, seed, number
        self._orders: dict[int, np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        """(image [B, C, *S] as stored, label [B, *S] uint8 or None) of step `step`: this process's part of its B · N items."""
        items = [self._item(step * self.size + offset) for offset in world.shard(range(self.size))]
        labels = [item.label for item in items if item.label is not None]
        return torch.stack([item.image for item in items]), torch.stack(labels) if labels else None

    def _item(self, k: int) -> Item:
        epoch, position = divmod(k, len(self.dataset))
        if epoch not in self._orders:
            order = np.random.default_rng([self.seed, self.number, 0, epoch]).permutation(
                len(self.dataset)
            )
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1} | {
                epoch: order
            }
        return self.dataset.item(
            int(self._orders[epoch][position]),
            np.random.default_rng([self.seed, self.number, 1, k]),
        )


class Prefetch(Generic[T]):
    """Iterates make(step) for the steps from `start` to `stop`, made ahead by one thread. An error there is raised here."""

    def __init__(self, make: Callable[[int], T], start: int, stop: int, depth: int = 3) -> None:
        self._make, self._steps = make, range(start, stop)
        self._ready: queue.Queue[T | BaseException] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        for _ in self._steps:
            made = self._ready.get()
            if isinstance(made, BaseException):
                raise made
            yield made

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def _work(self) -> None:
        try:
            for step in self._steps:
                if self._closed.is_set():
                    return
                self._ready.put(self._make(step))
        except BaseException as error:  # handed over to the loop, whatever it is
            self._ready.put(error)
