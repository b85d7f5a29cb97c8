"""Clock and memory: ways of doing the same work, timed in turn."""

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from crkd_cli.runtime.device import keep_freed_memory

OURS = (
    "crkd",
    "strict",
    "paper",
    "eager",
)  # ways that take memory as crkd does; the others as the C library does
Work = Callable[[], object]


@dataclass
class Sample:
    """Seconds of every repeat of one way, and its peak resident memory."""

    seconds: list[float] = field(default_factory=list)
    peak: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def gigabytes(self) -> float | None:
        return self.peak / 1e9 if self.peak else None


class Patience:
    """Whether another repeat is due: `least` in any case, then while `seconds` last, `most` at most."""

    def __init__(self, seconds: float, least: int = 3, most: int = 9) -> None:
        self.end, self.least, self.most = time.perf_counter() + seconds, least, most

    def more(self, done: int) -> bool:
        return done < self.least or (done < self.most and time.perf_counter() < self.end)


def clock(work: Work) -> float:
    """Seconds that `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_turn(works: dict[str, Work], patience: Patience, warm_up: bool = True) -> dict[str, Sample]:
    """Times several ways in turn, of crkd the second of two calls. `warm_up`: the first round is not counted."""
    samples = {name: Sample() for name in works}
    rounds = -1 if warm_up else 0
    while patience.more(rounds):
        for name, work in works.items():
            sample = samples[name]
            take_memory(ours=name in OURS)
            if sample.peak is None:
                forget_peak()
            elif name in OURS and len(works) > 1:
                work()  # fills the heap again that the others' turn has emptied
            seconds = clock(work)
            sample.peak = sample.peak or peak_bytes()
            if rounds >= 0:
                sample.seconds.append(seconds)
        rounds += 1
    return samples


def take_memory(ours: bool) -> None:
    """How this process takes memory from now on: as crkd asks for, or as the C library does of itself.

    The second starts from an empty heap and is what glibc adapts to in a process that frees large blocks: those above 32 MiB
    are fresh pages each time (malloc(3), M_MMAP_THRESHOLD), smaller ones come from the heap.
    """
    keep_freed_memory()
    if not ours and sys.platform.startswith("linux"):
        mmap_threshold, mmap_max = -3, -4  # malloc.h
        library = ctypes.CDLL(None)
        library.malloc_trim(0)
        library.mallopt(mmap_max, 65536)
        library.mallopt(mmap_threshold, 32 * 2**20)


def forget_peak() -> None:
    """Gives free memory back to the kernel and lets it count this process's peak from now on (Linux with glibc)."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int | None:
    """Peak resident memory since `forget_peak`; None where the kernel does not say."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return None
