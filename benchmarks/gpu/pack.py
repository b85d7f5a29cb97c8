"""Packs what a borrowed GPU machine without a network needs, from a checkout with its environment and prepared stores.

python -m benchmarks.gpu.pack acdc la --data-root data

build/gpu/tree.tar.gz           the project's files, for a machine that has no checkout
build/gpu/kit/commit            the commit of the tree
build/gpu/kit/vendor/NAME/      Python packages that the machine lacks
build/gpu/STORE-1of2.tar …      the prepared stores in pieces, to be carried in any order; see benchmarks/gpu/README.md
"""

import argparse
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution, version
from pathlib import Path

import numpy as np

from benchmarks.gpu.codes import encode
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError
from crkd_cli.paths import atomic_write

CHECKOUT = Path(__file__).parents[2]
TREE = (
    "crkd_cli",
    "configs",
    "splits",
    "benchmarks",
    "tests",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
)
PIECE = 40 * 2**20  # bytes of a piece, at most
WHEELS = ("msgspec",)  # of the running environment's versions
# Compiled for the machine: CPython 3.12 on x86-64 Linux. pip matches the platform's number exactly.
TARGET = [
    "--python-version",
    "3.12",
    "--implementation",
    "cp",
    "--only-binary",
    ":all:",
    "--no-deps",
]
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux_2_5_x86_64",
)
PURE = (
    "medpy/__init__.py",
    "medpy/core/",
    "medpy/metric/",
    ".dist-info/",
)  # of medpy: what imports numpy and scipy alone


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stores", nargs="*", help="prepared data sets")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=CHECKOUT / "build" / "gpu")
    parser.add_argument("--no-vendor", action="store_true", help="the machine has every package")
    given = parser.parse_args()
    try:
        pack_tree(given.out)
        if not given.no_vendor:
            pack_vendor(given.out / "kit" / "vendor")
        for name in given.stores:
            pieces, error = pack_store(Store(given.data_root / "prepared" / name), given.out)
            sizes = " + ".join(f"{piece.stat().st_size / 2**20:.1f}" for piece in pieces)
            print(
                f"{name}: {len(pieces)} pieces, {sizes} MiB; largest error {error:.2g} gray levels",
                flush=True,
            )
    except CrkdError as error:
        sys.exit(f"error: {error}")


def pack_tree(out: Path) -> None:
    """The project's files as tree.tar.gz, and the commit they are of ("-dirty": with changes)."""

    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return (
            None
            if "__pycache__" in member.name or member.name.startswith("crkd/benchmarks/results")
            else member
        )

    with atomic_write(out / "tree.tar.gz") as temporary, tarfile.open(temporary, "w:gz") as tar:
        for name in TREE:
            tar.add(CHECKOUT / name, f"crkd/{name}", filter=wanted)
    with atomic_write(out / "kit" / "commit") as temporary:
        temporary.write_text(checked_out() + "\n", encoding="utf-8")


def commit() -> str:
    """What the kit says, because a copied checkout may not know its commit; where there is no kit, the checkout's commit."""
    carried = CHECKOUT / "build" / "gpu" / "kit" / "commit"
    return carried.read_text(encoding="utf-8").strip() if carried.is_file() else checked_out()


def checked_out() -> str:
    """The checkout's commit ("-dirty": with changes), or `unknown`."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    return git.stdout.strip() if git.returncode == 0 else "unknown"


def pack_vendor(folder: Path) -> None:
    """The missing packages, each in a folder of its name: wheels by pip, medpy from the running environment."""
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as wheels:
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        names = [f"{name}=={version(name)}" for name in WHEELS]
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            *TARGET,
            *platforms,
            "--dest",
            wheels,
            *names,
        ]
        if subprocess.run(command, check=False).returncode:
            raise CrkdError(
                f"pip could not download {' and '.join(names)}; look at its message, or give --no-vendor"
            )
        for wheel in Path(wheels).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder / wheel.name.partition("-")[0])
    for file in distribution("medpy").files or []:
        if file.suffix != ".pyc" and any(part in str(file) for part in PURE):
            target = folder / "medpy" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), target)


def pack_store(store: Store, out: Path) -> tuple[list[Path], float]:
    """The store as pieces under `out`, and the largest error of its images in gray levels.

    Raises CrkdError that names the case if an image cannot be restored to within half a gray level.
    """
    for old in out.glob(f"{store.root.name}-*of*.tar"):
        old.unlink()
    pieces: list[list[tuple[str, bytes]]] = [[]]
    room, worst = PIECE, 0.0
    for name, data, error in _members(store):
        size = len(data) + 2 * tarfile.BLOCKSIZE  # a header, and padding to a whole block
        if size > room and pieces[-1]:
            pieces.append([])
            room = PIECE
        pieces[-1].append((name, data))
        room, worst = room - size, max(worst, error)
    files = [
        out / f"{store.root.name}-{number}of{len(pieces)}.tar"
        for number in range(1, len(pieces) + 1)
    ]
    for file, members in zip(files, pieces, strict=True):
        with atomic_write(file) as temporary, tarfile.open(temporary, "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(f"{store.root.name}/{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return files, worst


def _members(store: Store) -> Iterator[tuple[str, bytes, float]]:
    """Name, content and error of every file of the store; arrays as encode gives them, the rest as it is."""
    for file in [
        store.root / "index.json",
        *sorted(store.root.glob("splits/*.yaml")),
        *sorted(store.root.glob("native/*.png")),
    ]:
        yield file.relative_to(store.root).as_posix(), file.read_bytes(), 0.0
    arrays = sorted([*store.root.glob("images/*.npy"), *store.root.glob("labels/*.npy")])
    with ThreadPoolExecutor() as pool:  # the compressor lets other threads run
        yield from pool.map(lambda file: _array(store, file), arrays)


def _array(store: Store, file: Path) -> tuple[str, bytes, float]:
    try:
        data, error = encode(np.load(file, allow_pickle=False))
    except CrkdError as wrong:
        raise CrkdError(f"{file}: {wrong}; this store cannot be packed") from None
    return f"{file.relative_to(store.root).as_posix()}.xz", data, error


if __name__ == "__main__":
    main()
