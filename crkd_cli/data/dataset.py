"""The items of one part of a data set: cases, or their slices where the network has one axis less.

Letters: C channels, *S the frame's two or three spatial axes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from crkd_cli.augment.spatial import resize_image, resize_label
from crkd_cli.config import Frame
from crkd_cli.data.store import Store
from crkd_cli.errors import UsageError
from crkd_cli.windows import padding


class Item(NamedTuple):
    image: Tensor  # [C, *S] as stored: uint8 or float32
    label: Tensor | None  # [*S] uint8


class Dataset:
    """Items cut from the store's memory maps to the frame's size. Labels are opened only if `labeled`.

    Resized items stay in memory as far as they find room in `cache_bytes` bytes.
    """

    def __init__(
        self,
        store: Store,
        cases: Sequence[str],
        frame: Frame,
        *,
        labeled: bool,
        cache_bytes: int = 0,
    ) -> None:
        self.store, self.frame, self.labeled = store, frame, labeled
        if store.spec.dims - frame.dims not in (0, 1):
            raise UsageError(
                f"data.frame has {frame.dims} sizes, the cases of {store.spec.name} have {store.spec.dims} axes; "
                f"give {store.spec.dims} sizes"
                + (", or 2 to train on slices" if store.spec.dims == 3 else "")
            )
        sliced = store.spec.dims > frame.dims
        self._cached: dict[int, Item] = {}
        self._free_bytes = cache_bytes
        self.items = [
            (case, z)
            for case in cases
            for z in (range(store.cases[case].shape[0]) if sliced else [None])
        ]

    def __len__(self) -> int:
        return len(self.items)

    def item(self, number: int, rng: np.random.Generator) -> Item:
        """Item `number`, resized or cropped at random to the frame."""
        if number in self._cached:
            return self._cached[number]
        item = self._cut(number, rng)
        size = sum(t.nbytes for t in item if t is not None)
        if self.frame.resize and size <= self._free_bytes:  # always the same
            self._cached[number] = item
            self._free_bytes -= size
        return item

    def _cut(self, number: int, rng: np.random.Generator) -> Item:
        case, z = self.items[number]
        image = self.store.image(case)
        label = self.store.label(case) if self.labeled else None
        if z is not None:
            image, label = image[:, z], None if label is None else label[z]
        if self.frame.patch:
            starts = [
                int(rng.integers(max(s - p, 0) + 1))
                for s, p in zip(image.shape[1:], self.frame.patch, strict=True)
            ]
            crop = tuple(slice(a, a + p) for a, p in zip(starts, self.frame.patch, strict=True))
            image, label = image[(slice(None), *crop)], None if label is None else label[crop]
        # Copied out of the memory map, so that reading happens here and not in the step.
        return Item(
            self._fit(torch.from_numpy(np.array(image))),
            None if label is None else self._fit_label(np.array(label)),
        )

    def _fit(self, image: Tensor) -> Tensor:
        if self.frame.patch:
            return functional.pad(image, self._pad(image.shape[1:]))
        if image.shape[1:] == self.frame.size:
            return image
        resized = resize_image(
            image.unsqueeze(0).float(), self.frame.size, self.store.spec.modality
        ).squeeze(0)
        return resized.round().to(torch.uint8) if image.dtype == torch.uint8 else resized

    def _fit_label(self, array: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> Tensor:
        label = torch.from_numpy(array)
        if self.frame.patch:
            return functional.pad(label, self._pad(label.shape))
        return resize_label(label.unsqueeze(0), self.frame.size).squeeze(0)

    def _pad(self, shape: Sequence[int]) -> list[int]:
        # functional.pad counts axes from the last.
        return [side for pair in reversed(padding(shape, self.frame.size)) for side in pair]
