"""Restores prepared stores from the pieces that pack.py wrote, whichever are there; the rest may come with a later call."""

import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from benchmarks.gpu.codes import decode
from crkd_cli.errors import CrkdError
from crkd_cli.paths import atomic_write

PIECE = re.compile(r"(?P<store>.+)-(?P<number>\d+)of(?P<of>\d+)\.tar")


def unpack(kit: Path, prepared: Path) -> list[str]:
    """Restores every piece under `kit` that was not restored before into `prepared`/STORE; gives their names."""
    done = []
    for piece in sorted(kit.glob("*.tar")):
        found = PIECE.fullmatch(piece.name)
        if found and not (mark := _mark(prepared / found["store"], piece.name)).is_file():
            _restore(piece, prepared)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            done.append(piece.name)
    return done


def check(store: Path) -> None:
    """Raises CrkdError unless all pieces of `store` were restored: says which are still to be carried."""
    found = [one for mark in store.glob(".pieces/*") if (one := PIECE.fullmatch(mark.name))]
    if not found:
        raise CrkdError(
            f"no piece of {store.name} is here; carry build/gpu/{store.name}-1of….tar and the others"
        )
    of, have = int(found[0]["of"]), {int(one["number"]) for one in found}
    if lost := [
        f"{store.name}-{number}of{of}.tar" for number in range(1, of + 1) if number not in have
    ]:
        raise CrkdError(f"{store.name} is incomplete; carry {', '.join(lost)}")


def _restore(piece: Path, prepared: Path) -> None:
    try:
        with tarfile.open(piece) as tar, ThreadPoolExecutor() as pool:
            members = [
                (member.name, file.read()) for member in tar if (file := tar.extractfile(member))
            ]
            list(pool.map(lambda member: _write(prepared, *member), members))
    except tarfile.TarError as error:
        raise CrkdError(f"{piece} cannot be read ({error}); carry it again") from None


def _write(prepared: Path, name: str, data: bytes) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise CrkdError(f"a piece wants to write {name}, outside the store; pack it again")
    with atomic_write(prepared / path.with_name(path.name.removesuffix(".xz"))) as temporary:
        if path.suffix == ".xz":
            with temporary.open("wb") as file:  # np.save would add a suffix of its own to the name
                np.save(file, decode(data))
        else:
            temporary.write_bytes(data)


def _mark(store: Path, piece: str) -> Path:
    return store / ".pieces" / piece
