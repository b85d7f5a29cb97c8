"""The batches that methods get. Unlabeled batches have no label field, so no label can leak.

Shapes: B batch, C channels, *S two or three spatial axes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Labeled:
    """Labeled images of a step."""

    image: Tensor  # [B, C, *S] float32
    label: Tensor  # [B, *S] int64; K marks ignored pixels (see `Task.has_ignored`)
    chosen: Tensor | None = None  # [B] bool: contains foreground by choice; None: none does


@dataclass(frozen=True)
class Unlabeled:
    """Unlabeled images of a step, in a weak view and in as many strong views as the method uses."""

    weak: Tensor  # [B, C, *S] float32
    strong: tuple[Tensor, ...]  # with the same geometry as `weak`


@dataclass(frozen=True)
class Batch:
    """All data of a step."""

    labeled: Labeled
    unlabeled: Unlabeled | None = None  # None for methods that do not use it
    # The same number of other unlabeled images, for methods that mix images; else None.
    partners: Unlabeled | None = None

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors, always in the same order."""
        yield self.labeled.image
        yield self.labeled.label
        if self.labeled.chosen is not None:
            yield self.labeled.chosen
        for images in (self.unlabeled, self.partners):
            if images is not None:
                yield images.weak
                yield from images.strong
