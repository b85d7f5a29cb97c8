"""Both training loops, one step at a time on the same store, and where a step's time goes."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published import Published
from benchmarks.published_augment import strong_slice, strong_volume, weak_slice, weak_volume
from benchmarks.speed.timing import Patience, Sample, clock, forget_peak, peak_bytes, take_memory
from crkd_cli.training.loop import Run, train


class PublishedLoop:
    """The baseline on the store, split, batch sizes and frame of `run`; every call is one step, data included."""

    def __init__(self, run: Run, dense: bool) -> None:
        config, split, store = run.checkpoint.config, run.checkpoint.split, run.store
        task = run.method.task
        self.store, self.size, self.dims = store, config.data.frame.size, task.dims
        self.counts = config.data.labeled_batch_size, config.data.unlabeled_batch_size
        self.parts = [self._items(split.cases(store, part)) for part in ("labeled", "unlabeled")]
        threshold = config.methods["crkd"]["confidence"]
        self.method = (
            Published(task.network(), task.dims, task.classes, threshold, dense=dense)
            .to(run.device)
            .train()
        )
        self.optimizer = torch.optim.SGD(
            self.method.parameters(), config.train.lr, momentum=0.9, weight_decay=1e-4
        )
        self.device, self.draw = run.device, np.random.default_rng(0)

    def __call__(self) -> float:
        labeled = [self._sample(*self._pick(0), labeled=True) for _ in range(self.counts[0])]
        weak = [self._sample(*self._pick(1), labeled=False)[0] for _ in range(self.counts[1])]
        strong = [(strong_slice, strong_volume)[self.dims - 2](image, self.draw) for image in weak]
        label = torch.from_numpy(np.stack([label for _, label in labeled])).long().to(self.device)
        image, *views = (
            self._tensor(images) for images in ([image for image, _ in labeled], weak, strong)
        )
        total = self.method.losses(image, label, *views)["total"]
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        return total.item()

    def _items(self, cases: list[str]) -> list[tuple[str, int | None]]:
        sliced = self.store.spec.dims > self.dims
        return [
            (case, z)
            for case in cases
            for z in (range(self.store.cases[case].shape[0]) if sliced else [None])
        ]

    def _pick(self, part: int) -> tuple[str, int | None]:
        return self.parts[part][self.draw.integers(len(self.parts[part]))]

    def _sample(self, case: str, z: int | None, *, labeled: bool) -> tuple[Any, Any]:
        image = self.store.image(case)[0]
        label = self.store.label(case) if labeled else None
        if z is None:
            return weak_volume(image, label, self.size, self.draw)
        return weak_slice(image[z], None if label is None else label[z], self.size, self.draw)

    def _tensor(self, images: list[Any]) -> Tensor:
        return torch.from_numpy(np.stack(images)).float().unsqueeze(1).to(self.device)


class _Enough(Exception):
    """Ends the package's loop between two steps."""


def crkd_steps(run: Run, between: Callable[[float], bool]) -> None:
    """The package's own loop; after every step `between` gets its seconds and says whether to go on."""
    begin = time.perf_counter()

    def report(step: int, values: dict[str, float]) -> None:
        nonlocal begin
        if not between(time.perf_counter() - begin):
            raise _Enough
        begin = time.perf_counter()

    with suppress(_Enough):
        train(run, report)


def steps_in_turn(run: Run, loop: PublishedLoop, patience: Patience) -> tuple[Sample, Sample]:
    """(baseline, crkd): one step of the baseline, two of crkd's, of which the second counts. The first turn is for memory."""
    baseline, crkd, warm = Sample(), Sample(), False
    steps = 0
    forget_peak()

    def between(seconds: float) -> bool:
        nonlocal warm, steps
        steps += 1
        if steps % 2:  # fills the heap again that the baseline's turn has emptied
            return True
        if not warm:
            crkd.peak = peak_bytes()
            forget_peak()
        take_memory(ours=False)
        own = clock(loop)
        take_memory(ours=True)
        if warm:
            crkd.seconds.append(seconds)
            baseline.seconds.append(own)
        else:
            baseline.peak = peak_bytes()
        warm = True
        return patience.more(len(crkd.seconds))

    crkd_steps(run, between)
    return baseline, crkd


@dataclass
class Anatomy:
    """What one step is made of."""

    flops: int  # of its convolutions and products
    shares: dict[
        str, float
    ]  # of its time: data (upload, augmentation), forward, losses, backward, optimizer
    waiting: float  # share of the loop's time that it waits for data


def dissect(run: Run, steps: int = 2) -> Anatomy:
    """Looks into crkd's loop from outside: the calls of a run's parts are timed; backward is the rest.

    A first step is not counted, but for its operations; the second is left out too: its data were ready before it began.
    """
    spent = dict.fromkeys(("data", "forward", "losses", "optimizer"), 0.0)
    seconds: list[float] = []
    waited: list[float] = []
    method, student = run.method, run.method.student

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def data_parallel(*args: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return call(*args, **named)
            finally:
                spent[part] += time.perf_counter() - begin

        return data_parallel

    for name in ("encode", "decode", "head"):
        setattr(student, name, timed("forward", getattr(student, name)))
    method.pseudo_label = timed("forward", method.pseudo_label)  # type: ignore[method-assign]
    method.losses = timed("losses", method.losses)  # type: ignore[method-assign]
    method.after_step = timed("optimizer", method.after_step)  # type: ignore[method-assign]
    run.optimizer.step = timed("optimizer", run.optimizer.step)  # type: ignore[method-assign]
    run.loader = _Watched(run.loader, timed)  # type: ignore[assignment]
    counter = FlopCounterMode(display=False)
    begin = time.perf_counter()

    def report(step: int, values: dict[str, float]) -> None:
        nonlocal begin
        if step == 1:
            counter.__exit__(None, None, None)
        if step <= 2:
            spent.update(dict.fromkeys(spent, 0.0))
        else:
            seconds.append(time.perf_counter() - begin)
            waited.append(values["waiting"] / values["steps_per_second"])
        if len(seconds) == steps:
            raise _Enough
        begin = time.perf_counter()

    counter.__enter__()
    with suppress(_Enough):
        train(run, report)
    spent["losses"] -= spent["forward"]  # runs inside it
    shares = {part: value / sum(seconds) for part, value in spent.items()}
    shares["backward"] = 1.0 - sum(shares.values())
    return Anatomy(int(counter.get_total_flops()), shares, sum(waited) / sum(seconds))


class _Watched:
    """`Data` whose `batch` is timed."""

    def __init__(
        self, data: Any, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        self._data = data
        self.batch = timed("data", data.batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)
