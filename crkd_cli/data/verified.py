"""The arrays of a store, compared with their digests before they are used."""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FOLDERS = ("images", "labels", "native", "foreground")
SECONDS_TO_APPEAR = 0.5  # of a store that is being replaced


class DamagedFileError(Exception):
    """A file cannot be read, or is not what was written. The message says which and why."""


class Identity(NamedTuple):
    """What changes if a file is replaced or written to."""

    device: int
    inode: int
    size: int
    modified_ns: int


class _Layout(NamedTuple):
    """Where a verified .npy file holds its values."""

    identity: Identity
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


class VerifiedFiles:
    """The files below `root`, of which `digests` are the SHA-256 by name, such as images/ID.npy.

    An array is read completely at its first use, and again only if its file was replaced: then it
    must still have the same digest. SHA-256 takes 0.5 s per GB where the processor supports it.
    """

    def __init__(self, root: Path, digests: Mapping[str, str]) -> None:
        self._root, self._digests = root, digests
        self._layouts: dict[str, _Layout] = {}

    def array(self, name: str) -> NDArray[Any]:
        """Return a memory map of a .npy file. Raises DamagedFileError."""
        with self._open(name) as file:
            layout = self._layouts.get(name)
            if layout is None or layout.identity != identify(file):
                layout = self._verify_array(name, file)
                self._layouts[name] = layout
            return np.memmap(file, layout.dtype, "r", layout.offset, layout.shape)

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises DamagedFileError."""
        with self._open(name) as file:
            content = file.read()
        self._compare(name, hashlib.sha256(content).hexdigest())
        return content

    def check(self, name: str) -> None:
        """Raise DamagedFileError unless the file matches its digest."""
        with self._open(name) as file:
            self._compare(name, _digest(file))

    @contextmanager
    def _open(self, name: str) -> Iterator[BufferedReader]:
        try:
            with open_in_store(self._root, name) as file:
                yield file
        except OSError as error:
            reason = error.strerror or error
            raise DamagedFileError(f"{self._root / name} cannot be read ({reason})") from None

    def _verify_array(self, name: str, file: BufferedReader) -> _Layout:
        identity = identify(file)
        self._compare(name, _digest(file))
        file.seek(0)
        try:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError as error:
            raise DamagedFileError(f"{self._root / name} is not an array ({error})") from None
        return _Layout(identity, dtype, shape, file.tell())

    def _compare(self, name: str, digest: str) -> None:
        if self._digests.get(name) != digest:
            raise DamagedFileError(f"{self._root / name} is damaged: its SHA-256 differs")


def digests(root: Path) -> dict[str, str]:
    """Return the digests of all arrays below `root` by name."""
    result = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).glob("*")):
            with path.open("rb") as file:
                result[path.relative_to(root).as_posix()] = _digest(file)
    return result


def identify(file: BufferedReader) -> Identity:
    """Return the identity of an open file."""
    status = os.fstat(file.fileno())
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def open_in_store(root: Path, name: str) -> BufferedReader:
    """Open a file of the store `root`; wait briefly if the store is just being replaced."""
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    store_exists = False
    while True:
        try:
            return (root / name).open("rb")
        except FileNotFoundError:
            if store_exists or time.monotonic() > deadline:
                raise
        store_exists = root.is_dir()
        if not store_exists:
            time.sleep(0.01)


def _digest(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
