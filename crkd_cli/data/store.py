"""The prepared store: what training, evaluation and prediction know of data, whatever the raw layout was.

prepared/NAME/index.json        the data set's facts and one entry per case
prepared/NAME/images/ID.npy     [C, *S] uint8 (RGB, 0-255) or float32 (scans, normalized): lossless after normalization
prepared/NAME/labels/ID.npy     [*S] uint8 class numbers, same *S as the image; absent for unlabeled cases
prepared/NAME/native/ID.png     [H, W] uint8: a 2D label at its native size, only where the image was stored smaller
"""

import hashlib
import json
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from crkd_cli.config import Strict
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.paths import packaged_folder

RECIPE = 2  # raised whenever the same raw files would give another store


class DatasetSpec(Strict, frozen=True):
    """What holds for every case of a data set; also travels in checkpoints, so that `predict` reads files alike."""

    name: str  # data set
    source: str  # the plug-in in data/sources that reads its files
    classes: tuple[str, ...]  # index = class number; classes[0] is the background
    channels: int  # C
    modality: Literal["rgb", "gray", "mr"]  # decides the augmentation policy
    dims: Literal[2, 3]  # spatial axes of a case
    intensity: Literal[
        "uint8", "minmax", "zscore"
    ]  # uint8: stored 0-255, network sees /255; else normalized per case
    stored_size: tuple[int, ...] | None = None  # 2D images are stored at this size (see native/)
    z_last: bool = False  # medical files are stored [x, y, z] and not [z, y, x]


class CaseInfo(Strict, frozen=True):
    """One case of the store."""

    id: str
    group: str  # patient: splits never divide a group
    shape: tuple[int, ...]  # [*S] as stored
    spacing_mm: tuple[float, ...] | None  # per stored axis; None where the files do not say
    source: str  # raw image file, relative to the raw root
    sha256: str  # of that file
    label_sha256: str | None  # of the class numbers that evaluation scores against; None: no label
    intensity: dict[str, float]  # min, max, mean, std of the raw image
    mapping: dict[str, int] = msgspec.field(
        default_factory=dict
    )  # raw label value → class number, where any changed
    native_shape: tuple[int, ...] | None = None  # [H, W] before storing smaller

    @property
    def labeled(self) -> bool:
        return self.label_sha256 is not None


class Index(Strict, frozen=True):
    recipe: int
    spec: DatasetSpec
    cases: tuple[CaseInfo, ...]
    notes: tuple[str, ...] = ()  # what preparation chose or mapped, in words


class Store:
    """A prepared data set, read through memory maps. Raises UsageError if it is missing, CrkdError if of another recipe."""

    def __init__(self, root: Path) -> None:
        self.root = root
        file = root / "index.json"
        renew = self._renew
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if near := get_close_matches(root.name, _names(root.parent) - {root.name}, n=1):
                renew = f"did you mean {near[0]!r}? Else {renew}"
            elif not root.parent.is_dir():
                renew += f", or give the right --data-root ({root.parent} does not exist)"
            raise UsageError(
                f"{root} is no prepared data set (index.json is missing); {renew}"
            ) from None
        except (OSError, ValueError) as error:
            raise CrkdError(f"{file} cannot be read ({error}); {renew}") from None
        if not isinstance(tree, dict) or tree.get("recipe") != RECIPE:
            found = tree.get("recipe") if isinstance(tree, dict) else None
            raise CrkdError(
                f"{file} was made by recipe {found}, this version needs recipe {RECIPE}; {renew}"
            )
        try:
            self.index = msgspec.convert(tree, Index)
        except msgspec.ValidationError as error:
            raise CrkdError(f"{file} is damaged ({error}); {renew}") from None
        self.spec = self.index.spec
        self.cases = {case.id: case for case in self.index.cases}

    @cached_property
    def groups(self) -> dict[str, list[CaseInfo]]:
        """Cases by group, in the index's order."""
        groups: dict[str, list[CaseInfo]] = {}
        for case in self.index.cases:
            groups.setdefault(case.group, []).append(case)
        return groups

    @cached_property
    def digest(self) -> str:
        """Another one where an image, a label, a spacing or a patient is another."""
        return digest(
            (c.id, c.group, c.shape, c.spacing_mm, c.sha256, c.label_sha256)
            for c in self.index.cases
        )

    def image(self, case: str) -> NDArray[Any]:
        """[C, *S] memory map, uint8 or float32 as stored."""
        return self._map(self.root / "images" / f"{case}.npy", ("C", *self.cases[case].shape))

    def label(self, case: str) -> NDArray[np.uint8]:
        """[*S] memory map of class numbers."""
        return self._map(self.root / "labels" / f"{case}.npy", self.cases[case].shape)

    def native_label(self, case: str) -> NDArray[np.uint8]:
        """[*S] class numbers at the image's native size: what evaluation scores against."""
        if self.cases[case].native_shape is None:
            return self.label(case)
        from PIL import Image

        file = self.root / "native" / f"{case}.png"
        try:
            with Image.open(file) as image:
                return np.asarray(image, dtype=np.uint8)
        except OSError as error:
            raise CrkdError(f"{file} cannot be read ({error}); {self._renew}") from None

    def _map(self, file: Path, shape: tuple[Any, ...]) -> NDArray[Any]:
        try:
            array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise CrkdError(f"{file} cannot be read ({error}); {self._renew}") from None
        spatial = array.shape[1:] if shape[0] == "C" else array.shape
        if spatial != tuple(side for side in shape if side != "C"):
            raise CrkdError(
                f"{file} has shape {array.shape}, the index says {shape}; {self._renew}"
            )
        return array

    @property
    def _renew(self) -> str:
        name = self.root.name
        builtin = (
            name.startswith("phantom") or (packaged_folder("splits") / f"{name}.yaml").is_file()
        )
        return f"run: crkd prepare-data {name}" + ("" if builtin else " --source FOLDER")


def digest(facts: Iterable[tuple[object, ...]]) -> str:
    """sha256 of `facts`, in whatever order they come."""
    return hashlib.sha256("\n".join(sorted(map(repr, facts))).encode()).hexdigest()


def _names(prepared: Path) -> set[str]:
    """Data sets that a wrong name may have meant: those prepared, and the public ones."""
    here = {file.parent.name for file in prepared.glob("*/index.json")}
    return here | {file.stem for file in packaged_folder("splits").glob("*.yaml")}
