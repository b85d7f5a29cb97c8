"""Check a foreign file before its content is read: its type, and the size that it declares."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from crkd_cli.errors import CrkdError

SMALL_BYTES = 1 << 26  # fits into any memory
# A compressed file with more content than this, and this many times its size, is not a scan.
SUSPICIOUS_BYTES = 1 << 30
SUSPICIOUS_RATIO = 200
CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def check_regular(path: Path) -> None:
    """Raise CrkdError unless `path` is a regular file.

    It is not opened, because opening a pipe could block.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CrkdError(f"{path} cannot be read: {reason}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise CrkdError(f"{path} is {kind}, not a regular file; remove it")


@contextmanager
def enough_memory(path: Path) -> Iterator[None]:
    """Turn a MemoryError in the block into a CrkdError that names `path`."""
    try:
        yield
    except MemoryError:
        raise CrkdError(f"{path} does not fit into memory; cut it into smaller parts") from None


def check_declared_size(
    path: Path, declared: int, *, compressed: bool, stored: int | None = None
) -> None:
    """Check the number of bytes that a header declares before memory is reserved for them.

    `stored` is the number of bytes in all files of an image (default: those of `path`).
    Raises EOFError if the file is shorter, and CrkdError if the content cannot be read here.
    """
    stored = path.stat().st_size if stored is None else stored
    sizes = f"it declares {size_text(declared)} of data, the file has {size_text(stored)}"
    if not compressed and declared > stored:
        raise EOFError(sizes)
    if declared > max(SUSPICIOUS_BYTES, SUSPICIOUS_RATIO * stored):
        raise CrkdError(f"{path} is not a plausible image: {sizes}; remove it")
    if declared < SMALL_BYTES:
        return
    available = available_memory()
    if available is not None and declared > available:
        raise CrkdError(
            f"{path} does not fit into memory: {sizes}, {size_text(available)} of memory are free; "
            "cut it into smaller parts"
        )


def too_many_axes(path: Path, sizes: Sequence[int]) -> CrkdError:
    """Return the error for a file with more than three spatial axes of these `sizes`."""
    return CrkdError(
        f"{path} has {len(sizes)} axes ({' × '.join(map(str, sizes))}); an image has two or three: "
        "write each time point or channel to a file (extract one frame)"
    )


def available_memory() -> int | None:
    """Return the number of bytes that this process can still use, or None if it is unknown."""
    limits = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        limits.append(1024 * int(line.split()[1]))
    for limit, used in CGROUP_FILES:
        with suppress(OSError, ValueError):  # ValueError: "max", no limit
            limits.append(max(0, int(Path(limit).read_text()) - int(Path(used).read_text())))
    if not limits and hasattr(os, "sysconf"):
        with suppress(OSError, ValueError):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def size_text(count: int) -> str:
    """Return a number of bytes for a message: "1.4 kB"."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
