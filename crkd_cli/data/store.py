"""The prepared store: what training, evaluation and prediction read, whatever the raw layout was.

prepared/NAME/index.json      facts about the dataset, an entry per case, a digest of every array
prepared/NAME/dataset.yaml    the description of the dataset, for people; also in index.json
prepared/NAME/images/ID.npy   [C, *S] uint8 (RGB, 0-255) or float32 (scans, normalized)
prepared/NAME/labels/ID.npy   [*S] class numbers, of the same *S; absent for unlabeled cases
prepared/NAME/native/         [*S]: the label at its native size, if the image is stored at another:
                              ID.png in 2D, of 8 or 16 bits, and ID.npz in 3D
prepared/NAME/foreground/ID.npy
                              [1 + axes, N]: voxels of every class; see data/foreground.py

Class numbers are uint8, or int16 if there are more than 255 classes. With K classes they are 0 to
K − 1, and K marks pixels that count in no loss and no score (see `DatasetSpec.ignore`).
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from crkd_cli.config import Strict
from crkd_cli.data.description import ChannelModality, Description
from crkd_cli.data.plan import Plan
from crkd_cli.data.verified import (
    DamagedFileError,
    Identity,
    VerifiedFiles,
    digests,
    identify,
    open_in_store,
)
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.paths import packaged_folder
from crkd_cli.progress import Advance

T = TypeVar("T")

RECIPE = 4  # incremented when the same raw files would give a different store

# How values are stored. uint8: as 0-255, divided by 255 later. minmax: from 0 to 1. zscore: with
# mean 0 and standard deviation 1 in each image. window: clipped and scaled alike in all images.
Intensity = Literal["uint8", "minmax", "zscore", "window"]


class Window(Strict, frozen=True):
    """The values of a channel in the labeled foreground of all cases, such as Hounsfield units."""

    low: float  # percentile 0.5
    high: float  # percentile 99.5
    mean: float
    std: float


class ValueStatistics(Strict, frozen=True):
    """The values of a channel in a raw image."""

    min: float
    max: float
    mean: float
    std: float


class ChannelInfo(Strict, frozen=True):
    """A channel of the images; the three colors of a photograph are one channel, RGB."""

    modality: ChannelModality  # determines the augmentations
    intensity: Intensity
    name: str = "image"
    window: Window | None = None  # of intensity window


class ClassInfo(Strict, frozen=True):
    """A class: its name, and its values in the label files."""

    name: str
    values: tuple[int, ...]  # predicted masks contain the first one

    @property
    def value(self) -> int:
        """The value in predicted masks."""
        return self.values[0]


class DatasetSpec(Strict, frozen=True):
    """What all cases of a dataset have in common.

    Checkpoints contain it, so that `predict` reads files like `prepare-data` does.
    """

    name: str
    source: str  # plug-in in data/sources
    classes: tuple[ClassInfo, ...]  # by class number; classes[0] is the background
    channels: tuple[ChannelInfo, ...]
    dims: Literal[2, 3]  # spatial axes of a case
    stored_size: tuple[int, ...] | None = None  # 2D images are resized to it (see native/)
    z_last: bool = False  # medical files are stored as [x, y, z] instead of [z, y, x]
    ignore: int | None = None  # the value of pixels that count in no loss and no score
    description: Description = Description()  # complete, as inferred or given
    plan: Plan | None = None  # complete; None: stored and trained as published

    @property
    def axes(self) -> str:
        """The names of the spatial axes as stored, such as zyx."""
        return "xyz" if self.z_last else "zyx"[-self.dims :]

    def plane(self, dims: int) -> tuple[int, int]:
        """Return the axes, of a network's `dims`, that lie in the plane of slices."""
        return (1, 2) if dims == 3 and not self.z_last else (0, 1)

    @property
    def channel_count(self) -> int:
        """C: three for RGB, else one for every channel."""
        return 3 if self.is_color else len(self.channels)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The names of the channels."""
        return tuple(channel.name for channel in self.channels)

    @property
    def is_color(self) -> bool:
        """Whether the images are RGB, which no other channel can be combined with."""
        return self.channels[0].modality == "RGB"

    @property
    def resized_to_nearest(self) -> bool:
        """Whether resized images take the nearest value, as published for ACDC."""
        return self.plan is None and self.channels[0].modality == "MR"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, the background first."""
        return tuple(info.name for info in self.classes)


def intensity_of(modality: ChannelModality, dims: int) -> Intensity:
    """Return how the values of a user's own images with `dims` axes are stored."""
    if modality == "RGB":
        return "uint8"
    if modality == "CT":
        return "window"
    return "minmax" if modality == "gray" and dims == 2 else "zscore"


def numbered_classes(names: Iterable[str]) -> tuple[ClassInfo, ...]:
    """Return classes whose values in label files are their class numbers."""
    return tuple(ClassInfo(name=name, values=(value,)) for value, name in enumerate(names))


def label_dtype(class_count: int) -> type[np.uint8] | type[np.int16]:
    """Return the type of class numbers from 0 to `class_count`, which marks ignored pixels."""
    return np.uint8 if class_count <= 255 else np.int16


class CaseInfo(Strict, frozen=True):
    """The index entry of a case."""

    id: str
    group: str  # the patient; splits never divide a group
    shape: tuple[int, ...]  # [*S] as stored
    spacing_mm: tuple[float, ...] | None  # per stored axis; None if the files do not state it
    source: str  # first raw image file, relative to the folder of raw files
    sha256: str  # of the image files
    label_sha256: str | None  # of the class numbers that evaluation uses; None: unlabeled
    intensity: tuple[ValueStatistics, ...]  # of each channel of the raw image
    # Pixels or voxels of every class in the native label; empty: unlabeled.
    class_sizes: tuple[int, ...] = ()
    # Of the file, in the order of the stored axes, if the image was resized or resampled.
    native_shape: tuple[int, ...] | None = None
    native_spacing_mm: tuple[float, ...] | None = None

    @property
    def labeled(self) -> bool:
        """Whether the case has a label."""
        return self.label_sha256 is not None

    @property
    def label_spacing_mm(self) -> tuple[float, ...] | None:
        """The spacing of the native label, which evaluation uses."""
        return self.spacing_mm if self.native_shape is None else self.native_spacing_mm


class Index(Strict, frozen=True):
    """The content of index.json, which also has a checksum of it; see `write_index`."""

    recipe: int
    spec: DatasetSpec
    cases: tuple[CaseInfo, ...]
    notes: tuple[str, ...] = ()  # what preparation chose, mapped or ignored, in sentences
    # Digest of every array, by its path in the store.
    sha256: dict[str, str] = msgspec.field(default_factory=dict)


class StoreError(CrkdError):
    """A store that is in use is damaged, or was replaced by other data."""


class Store:
    """A prepared dataset, read through memory maps.

    A file is compared with its digest at its first use, and again if it was replaced. So a store
    that is replaced by other data while it is in use never mixes old and new cases.

    Raises UsageError if it does not exist, CrkdError if it is damaged or another recipe made it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._identity: Identity  # of index.json when it was read
        self.index = self._read_index(root / "index.json")
        self._files = VerifiedFiles(root, self.index.sha256)
        self.spec = self.index.spec
        self.cases = {case.id: case for case in self.index.cases}

    @cached_property
    def groups(self) -> dict[str, list[CaseInfo]]:
        """The cases by group, in the order of the index."""
        groups: dict[str, list[CaseInfo]] = {}
        for case in self.index.cases:
            groups.setdefault(case.group, []).append(case)
        return groups

    @cached_property
    def digest(self) -> str:
        """A digest that changes with every image, label, spacing and group."""
        return digest(
            (case.id, case.group, case.shape, case.spacing_mm, case.sha256, case.label_sha256)
            for case in self.index.cases
        )

    def image(self, case: str) -> NDArray[Any]:
        """Return a memory map [C, *S], uint8 or float32 as stored."""
        return self._read(self._files.array, f"images/{case}.npy")

    def label(self, case: str) -> NDArray[Any]:
        """Return a memory map [*S] of class numbers, uint8 or int16."""
        return self._read(self._files.array, f"labels/{case}.npy")

    def foreground(self, case: str) -> NDArray[Any]:
        """Return a memory map [1 + axes, N]; see `foreground.sample_positions`."""
        return self._read(self._files.array, f"foreground/{case}.npy")

    def native_label(self, case: str) -> NDArray[Any]:
        """Return class numbers [*S] at the native size of the image, for evaluation."""
        if self.cases[case].native_shape is None:
            return self.label(case)
        if self.spec.dims == 3:
            content = self._read(self._files.read, f"native/{case}.npz")
            with np.load(BytesIO(content), allow_pickle=False) as file:
                label: NDArray[Any] = file["label"]
            return label
        from PIL import Image

        content = self._read(self._files.read, f"native/{case}.png")
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            return np.asarray(image).astype(label_dtype(len(self.spec.classes)))

    def check(self, advance: Advance) -> None:
        """Compare all arrays with their digests. Raises CrkdError if some differ."""
        damaged = []
        for name in self.index.sha256:
            try:
                self._files.check(name)
            except DamagedFileError:
                damaged.append(name)
            advance(1, name)
        if damaged:
            others = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
            raise CrkdError(
                f"{self.root} is damaged: {', '.join(damaged[:3])}{others}; {self._renew}"
            )

    def check_unchanged(self) -> None:
        """Raise StoreError if other data was prepared here since the store was opened."""
        if self._is_changed():
            raise StoreError(f"{self.root} was prepared from other data while this command used it")

    def _is_changed(self) -> bool:
        try:
            with open_in_store(self.root, "index.json") as file:
                if identify(file) == self._identity:
                    return False
        except OSError:
            return True
        now = Store(self.root)
        content, before = ((s.digest, s.spec, s.index.sha256) for s in (now, self))
        if content == before:
            self._identity = now._identity
        return content != before

    def _read(self, read: Callable[[str], T], name: str) -> T:
        try:
            return read(name)
        except DamagedFileError as error:
            self.check_unchanged()
            raise StoreError(f"{error}; {self._renew}") from None

    def _read_index(self, file: Path) -> Index:
        try:
            with open_in_store(self.root, file.name) as stream:
                self._identity = identify(stream)
                tree = json.loads(stream.read())
        except FileNotFoundError:
            raise UsageError(
                f"{self.root} is not a prepared dataset (index.json is missing); "
                f"{self._suggestion()}"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise CrkdError(f"{file} cannot be read ({error}); {self._renew}") from None
        recipe = tree.get("recipe") if isinstance(tree, dict) else None
        if recipe != RECIPE:
            raise CrkdError(
                f"{file} was made by recipe {recipe}, but this version needs recipe {RECIPE}; "
                f"{self._renew}"
            )
        checksum = tree.pop("checksum", None)
        if checksum != _checksum(tree):
            raise CrkdError(f"{file} is damaged or was edited: its checksum differs; {self._renew}")
        try:
            return msgspec.convert(tree, Index)
        except msgspec.ValidationError as error:
            raise CrkdError(f"{file} is damaged ({error}); {self._renew}") from None

    def _suggestion(self) -> str:
        """Return what to do if there is no store: correct the name or the root, or prepare it."""
        near = get_close_matches(self.root.name, _known_names(self.root), n=1)
        if near:
            return f"did you mean {near[0]!r}? Else {self._renew}"
        prepared = self.root.parent
        if not prepared.is_dir():
            return f"{self._renew}, or give the right --data-root ({prepared} does not exist)"
        return self._renew

    @property
    def _renew(self) -> str:
        """The command that makes the store."""
        name = self.root.name
        has_splits = (packaged_folder("splits") / f"{name}.yaml").is_file()
        if has_splits or name.startswith("phantom"):
            return f"run: crkd prepare-data {name}"
        return f"run: crkd prepare-data {name} --source FOLDER"


def write_index(root: Path, index: Index) -> None:
    """Write index.json with the digests of the arrays in the folder `root`, and its own."""
    tree = msgspec.to_builtins(msgspec.structs.replace(index, sha256=digests(root)))
    text = json.dumps({**tree, "checksum": _checksum(tree)}, indent=1, ensure_ascii=False)
    (root / "index.json").write_text(text + "\n", encoding="utf-8")


def digest(facts: Iterable[tuple[object, ...]]) -> str:
    """Return the SHA-256 of `facts`, which does not depend on their order."""
    return hashlib.sha256("\n".join(sorted(map(repr, facts))).encode()).hexdigest()


def _checksum(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _known_names(root: Path) -> set[str]:
    """Return the datasets that a wrong name may mean: the prepared and the public ones."""
    prepared = {file.parent.name for file in root.parent.glob("[!.]*/index.json")}
    public = {file.stem for file in packaged_folder("splits").glob("*.yaml")}
    return (prepared | public) - {root.name}
