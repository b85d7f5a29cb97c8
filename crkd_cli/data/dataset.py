"""The items of one part of a dataset: cases, or their slices if the network has one axis less.

Shapes: C channels, *S the two or three spatial axes of the frame.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from crkd_cli.augment.spatial import resize_image, resize_label
from crkd_cli.config import Frame
from crkd_cli.data.foreground import choose_position
from crkd_cli.data.store import Store
from crkd_cli.errors import UsageError


class Item(NamedTuple):
    """An image, and its label if the dataset is labeled."""

    image: Tensor  # [C, *S], uint8 or float32 as stored
    label: Tensor | None  # [*S] uint8 or int16, as stored


class Dataset:
    """Items from a store, resized or cropped to the frame.

    Args:
        labeled: Read the labels; otherwise, they are never opened.
        source_size: Size of the crops, with a margin around the frame's patch; None for no margin.
        cache_bytes: Keep resized items in memory up to this size.
    """

    def __init__(
        self,
        store: Store,
        cases: Sequence[str],
        frame: Frame,
        *,
        labeled: bool,
        source_size: tuple[int, ...] | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self.store, self.frame, self.labeled = store, frame, labeled
        self._source_size = source_size or frame.size
        self._cache: dict[int, Item] = {}
        self._free_bytes = cache_bytes
        _check_frame(store, frame)
        self.items: list[tuple[str, int | None]] = []  # (case, slice number)
        for case in cases:
            if store.spec.dims > frame.dims:
                self.items += [(case, z) for z in range(store.cases[case].shape[0])]
            else:
                self.items.append((case, None))

    def __len__(self) -> int:
        return len(self.items)

    def item(self, number: int, rng: np.random.Generator, turn: int | None = None) -> Item:
        """Return item `number`, resized to the frame, or cropped to it at random.

        With `turn` (0, 1, …) a patch contains foreground of the class whose turn it is, or of
        another one if the case lacks it. Of a volume, a slice that contains it takes the place of
        slice `number`. A case without foreground is cropped at random all the same.
        """
        voxel = None
        if turn is not None:
            number, voxel = self._choose_foreground(number, turn, rng)
        if number in self._cache:
            return self._cache[number]
        item = self._read(number, rng, voxel)
        size = sum(tensor.nbytes for tensor in item if tensor is not None)
        if self.frame.resize and size <= self._free_bytes:
            self._cache[number] = item
            self._free_bytes -= size
        return item

    def _choose_foreground(
        self, number: int, turn: int, rng: np.random.Generator
    ) -> tuple[int, tuple[int, ...] | None]:
        """Return the item to read, and a voxel of it that is foreground if there is one."""
        case, z = self.items[number]
        if z is None and self.frame.resize:  # the whole case
            return number, None
        class_count = len(self.store.spec.classes)
        voxel = choose_position(self.store.foreground(case), turn, class_count, rng)
        if voxel is None or z is None:
            return number, voxel
        return number - z + voxel[0], voxel[1:]

    def _read(self, number: int, rng: np.random.Generator, voxel: tuple[int, ...] | None) -> Item:
        case, z = self.items[number]
        image = self.store.image(case)
        label = self.store.label(case) if self.labeled else None
        if z is not None:
            image = image[:, z]
            label = None if label is None else label[z]
        if self.frame.patch:
            corner = self._choose_corner(image.shape[1:], rng, voxel)
            crop = _cut(image, corner, self._source_size)
            return Item(crop, None if label is None else _cut(label, corner, self._source_size))
        return Item(
            self._resize_image(_load(image)),
            None if label is None else self._resize_label(_load(label)),
        )

    def _choose_corner(
        self, shape: Sequence[int], rng: np.random.Generator, voxel: tuple[int, ...] | None
    ) -> list[int]:
        """Choose a patch of a case, and return the first voxel of the patch with its margin.

        The patch contains `voxel`, if this is given. Where it is larger than the case, the case
        lies in its center.
        """
        corner = []
        patch = self.frame.size
        for axis, (side, size) in enumerate(zip(shape, patch, strict=True)):
            first, last = 0, max(side - size, 0)
            if voxel is not None:
                first, last = max(0, voxel[axis] - size + 1), min(last, voxel[axis])
            start = int(rng.integers(first, last + 1))
            start -= max(size - side, 0) // 2
            corner.append(start - (self._source_size[axis] - size) // 2)
        return corner

    def _resize_image(self, image: Tensor) -> Tensor:
        """Resize an image [C, *S] to the frame."""
        if image.shape[1:] == self.frame.size:
            return image
        batch = image.unsqueeze(0).float()
        nearest = self.store.spec.resized_to_nearest
        resized = resize_image(batch, self.frame.size, nearest=nearest).squeeze(0)
        return resized.round().to(torch.uint8) if image.dtype == torch.uint8 else resized

    def _resize_label(self, label: Tensor) -> Tensor:
        """Resize a label [*S] to the frame."""
        return resize_label(label.unsqueeze(0), self.frame.size).squeeze(0)


def _check_frame(store: Store, frame: Frame) -> None:
    dims = store.spec.dims
    if dims - frame.dims in (0, 1):
        return
    advice = f"give {dims} sizes"
    if dims == 3:
        advice += ", or 2 to train on slices"
    raise UsageError(
        f"data.frame has {frame.dims} sizes, but the cases of {store.spec.name} have {dims} axes; "
        f"{advice}"
    )


def _cut(array: NDArray[Any], corner: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return the part of array [..., *S] that starts at `corner`, with zeros beyond the borders."""
    inside: list[slice] = []
    outside: list[int] = []  # for `F.pad`, which starts at the last axis
    for start, side, length in zip(corner, size, array.shape[-len(size) :], strict=True):
        inside.append(slice(max(start, 0), min(start + side, length)))
        outside = [max(-start, 0), max(start + side - length, 0), *outside]
    part = array[(slice(None),) * (array.ndim - len(size)) + tuple(inside)]
    return F.pad(_load(part), outside)


def _load(array: NDArray[Any]) -> Tensor:
    """Copy a part of a memory map, so that it is read from disk here and not in the step."""
    return torch.from_numpy(np.array(array))
