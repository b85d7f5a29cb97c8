"""What a data source is: the only code that knows a raw layout. After it, every case looks alike."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw import formats, pictures
from crkd_cli.data.raw.download import Remote
from crkd_cli.data.raw.formats import Volume
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError
from crkd_cli.progress import Advance

SPACING_KEPT = "files that state their spacing keep it: --spacing holds for the others only"


@dataclass(frozen=True)
class RawCase:
    """The raw files of one case. `label` may be the image's own file (h5) and is None for an unlabeled case."""

    id: str
    group: str
    image: Path
    label: Path | None


class Source(ABC):
    """A raw layout: finds its files, and reads them normalized, oriented and sized as the store holds them.

    A plug-in states `find` and `spec` and overrides what its layout does otherwise. `notes` collects, in words, what
    it chose or left out.
    """

    archives: ClassVar[tuple[str, ...]] = ()  # names (patterns) of the archives users have
    remote: ClassVar[
        tuple[Remote, ...]
    ] = ()  # public without registration: downloaded when nothing is there
    where: ClassVar[str] = ""  # where to get the raw files by hand
    generated: ClassVar[bool] = False  # made by `generate`, no raw files needed

    def __init__(
        self, spacing_mm: tuple[float, ...] | None = None, published_crop: bool = False
    ) -> None:
        self.spacing_mm = spacing_mm  # where the files do not say; per axis of *S, or one for all
        self.published_crop = published_crop  # `la` only
        self.notes: list[str] = []

    @abstractmethod
    def find(self, root: Path) -> list[RawCase]:
        """The cases under `root`, sorted by id. Raises CrkdError that names the layouts understood if there is none."""

    @abstractmethod
    def spec(self, name: str, raws: list[RawCase]) -> DatasetSpec:
        """What holds for every case of the data set `name`."""

    def generate(self, folder: Path, advance: Advance) -> None:
        """Write the raw files into the empty `folder` (where `generated`)."""
        raise NotImplementedError

    def read_image(self, path: Path, spec: DatasetSpec) -> Volume:
        """The image as the store holds it: [C, *S], normalized, in stored orientation and size. For `predict` too."""
        return self.finish(self.open_image(path, spec), path, spec)

    def open_image(self, path: Path, spec: DatasetSpec) -> Volume:
        """The image in stored orientation with the file's values, checked. Raises CrkdError."""
        volume = formats.read_image(path, z_last=spec.z_last)
        array = volume.array
        dims = array.ndim - 1
        of = f"the data set {spec.name} is"
        if dims != spec.dims:
            raise CrkdError(f"{path} is {dims}D, {of} {spec.dims}D; take it out")
        if spec.channels == 3 and len(array) == 1:
            array = np.repeat(array, 3, axis=0)
        elif spec.channels == 1 and len(array) == 3 and (array == array[:1]).all():
            array = array[:1]
        if len(array) != spec.channels:
            raise CrkdError(
                f"{path} has {len(array)} channels, {of} of {spec.channels}; convert it"
            )
        if spec.intensity == "uint8" and array.dtype != np.uint8:
            raise CrkdError(f"{path} holds {array.dtype} values, {of} of 8 bits; convert it")
        if array.dtype.kind == "f" and (bad := np.count_nonzero(~np.isfinite(array))):
            raise CrkdError(f"{path} holds {bad} NaN or infinite values; repair or remove it")
        if array.min() == array.max():
            raise CrkdError(f"{path} is constant, every value is {array.flat[0]}; remove it")
        if volume.spacing_mm and self.spacing_mm and SPACING_KEPT not in self.notes:
            self.notes.append(SPACING_KEPT)
        return replace(
            volume, array=array, spacing_mm=volume.spacing_mm or self._given_spacing(spec.dims)
        )

    def finish(self, volume: Volume, path: Path, spec: DatasetSpec) -> Volume:
        """`volume` normalized and at its stored size. float32 is exact to 1e-6 of the range."""
        array = self.normalize(volume.array, path, spec)
        if spec.stored_size is not None:
            array = pictures.resize(array, spec.stored_size, "bilinear")
        return replace(volume, array=array)

    def normalize(self, array: NDArray[Any], path: Path, spec: DatasetSpec) -> NDArray[Any]:
        """[C, *S] as `spec.intensity` says, over the whole image: uint8 stays, else float32."""
        if spec.intensity == "uint8":
            return array
        if spec.intensity == "minmax":
            low, high = float(array.min()), float(array.max())
        else:
            low, high = float(array.mean(dtype=np.float64)), 0.0
            high = low + float(array.std(dtype=np.float64))
        values = array.astype(np.float32) if array.dtype.itemsize <= 4 else array.astype(np.float64)
        values -= low
        values /= high - low
        return values.astype(np.float32, copy=False)

    def read_label(self, path: Path, spec: DatasetSpec) -> tuple[NDArray[np.uint8], dict[str, int]]:
        """[*S] class numbers at the file's size, and the mapping of the values that were changed. Raises CrkdError."""
        label = formats.read_label(path, z_last=spec.z_last).array
        values, pixels = np.unique(label, return_counts=True)
        counts: dict[int, int] = dict(zip(values.tolist(), pixels.tolist(), strict=True))
        numbers = {value: value for value in counts} | self.mapping(path, counts, spec)
        wrong = [value for value in counts if numbers[value] not in range(len(spec.classes))]
        if wrong:
            shown = ", ".join(map(str, wrong[:5])) + (" …" if len(wrong) > 5 else "")
            last = len(spec.classes) - 1
            raise CrkdError(
                f"{path} has label values that are no class: {shown}; classes are 0 to {last}"
            )
        table = np.zeros(max(counts) + 1, dtype=np.uint8)
        table[values] = [numbers[value] for value in counts]
        return table[label], _record(numbers)

    def mapping(self, path: Path, counts: dict[int, int], spec: DatasetSpec) -> dict[int, int]:
        """Raw label value → class number, for values in `counts` (pixels per value) that are not class numbers yet."""
        return threshold(counts) if len(spec.classes) == 2 and blurred(counts) else {}

    def crop(self, case: str, label: NDArray[np.uint8] | None) -> tuple[slice, ...] | None:
        """What of the image's *S is stored with --published-crop; None for all of it."""
        return None

    def _given_spacing(self, dims: int) -> tuple[float, ...] | None:
        if self.spacing_mm is None:
            return None
        return self.spacing_mm * dims if len(self.spacing_mm) == 1 else self.spacing_mm


def _record(numbers: dict[int, int]) -> dict[str, int]:
    """The values that were changed, in few words: {"255": 1}, or ranges where many became one: {"247-255": 1}."""
    record = {}
    for number in sorted(set(numbers.values())):
        changed = [value for value in numbers if numbers[value] == number != value]
        if changed:
            record[str(changed[0]) if len(changed) == 1 else f"{changed[0]}-{changed[-1]}"] = number
    return record


def blurred(counts: Mapping[int, int]) -> bool:
    """Whether a mask is 0 and 255, or was before it was compressed or resized: 99 % of its pixels are near these two."""
    near = sum(
        pixels for value, pixels in counts.items() if 0 <= value <= 32 or 223 <= value <= 255
    )
    return min(counts) >= 0 and 223 <= max(counts) <= 255 and near >= 0.99 * sum(counts.values())


def threshold(counts: Mapping[int, int]) -> dict[int, int]:
    """The mapping of such a mask: below 128 is background."""
    return {value: int(value >= 128) for value in counts}


def folder(root: Path, *names: str) -> Path | None:
    """The first of the folders called one of `names`: `root` itself, or under it, nearest first."""
    if root.name in names:
        return root
    found = (path for name in names for path in root.rglob(name) if path.is_dir())
    return min(found, key=lambda path: (len(path.parts), path), default=None)


def images_in(folder: Path) -> list[Path]:
    """The image files of `folder`, sorted by name; hidden files are none."""
    found = (
        path for path in folder.iterdir() if formats.suffix(path) and not path.name.startswith(".")
    )
    return sorted(path for path in found if path.is_file())


def case_id(image: Path) -> str:
    """The id of the case in the file `image`: its name without suffix and without nnU-Net's channel number."""
    return formats.stem(image).removesuffix("_0000")


def pairs(
    images: Path, labels: Path | None, endings: tuple[str, ...], notes: list[str]
) -> list[RawCase]:
    """Cases by the stem of files in `images`; labels of the same stem, or with one of `endings` after it."""
    by_stem: dict[str, Path] = {}
    for path in images_in(labels) if labels else []:
        name = formats.stem(path)
        ending = next((ending for ending in endings if name.endswith(ending)), "")
        other = by_stem.setdefault(name.removesuffix(ending), path)
        if other != path:
            raise CrkdError(
                f"{labels} has two labels for one image: {other.name} and {path.name}; keep one"
            )
    others = sum(
        path.is_file() and not formats.suffix(path) and path.suffix != ".txt"
        for path in images.glob("[!.]*")
    )
    if others:
        notes.append(f"files in {images.name} of no known image format, left out: {others}")
    raws = []
    for path in images_in(images):
        name = case_id(path)
        raws.append(RawCase(name, name, path, by_stem.get(name)))
    lonely = sorted(set(by_stem) - {raw.id for raw in raws})
    if lonely:
        bare = {raw.id.lower(): raw.id for raw in raws if raw.label is None}
        near = {name: get_close_matches(name.lower(), bare, n=1, cutoff=0.8) for name in lonely[:5]}
        shown = ", ".join(
            f"{name}: did you mean {bare[match[0]]}?" if match else name
            for name, match in near.items()
        )
        notes.append(f"label files without an image, left out: {len(lonely)} ({shown})")
    return sorted(raws, key=lambda raw: raw.id)
