"""What a method sees: a batch. The unlabeled part has no label field, so none can leak.

Letters: B batch, C channels, *S two or three spatial axes.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Labeled:
    image: Tensor  # [B, C, *S] float32
    label: Tensor  # [B, *S] int64


@dataclass(frozen=True)
class Unlabeled:
    weak: Tensor  # [B, C, *S] float32
    strong: tuple[Tensor, ...]  # as many as the method asks for, of the same geometry as weak


@dataclass(frozen=True)
class Batch:
    labeled: Labeled
    unlabeled: Unlabeled | None = None  # None for a method that does not use it
    partners: Unlabeled | None = (
        None  # as many again in another order, to mix with; None but for a method that asks for them
    )
