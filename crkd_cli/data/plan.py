"""The plan of a dataset: the grid that its images are stored on, and what is trained on them."""

from typing import Annotated, Literal

import msgspec

from crkd_cli.config import BatchSize, Size, Strict

MIN_SPACING_MM, MAX_SPACING_MM = 1e-6, 1e4
Millimeters = Annotated[float, msgspec.Meta(ge=MIN_SPACING_MM, le=MAX_SPACING_MM)]
Native = Literal["native"]  # as in every file


class Plan(Strict, frozen=True):
    """How images are stored and trained on.

    None: inferred from the images in a description, and not applicable in a prepared dataset.
    """

    # Where the axes x, y and z of stored volumes point to, such as RAS, or native.
    orientation: str | None = None
    # In mm per axis of stored volumes: z, y, x.
    spacing: tuple[Millimeters, ...] | Native | None = None
    network: Literal["2D", "3D"] | None = None  # 2D: volumes are cut into slices along z
    patch: tuple[Size, ...] | None = None  # of volumes or their slices: the network's input
    resize: tuple[Size, ...] | None = None  # of 2D images: they are resized to it and stored so
    # Labeled images, patches or slices per step, and as many unlabeled ones.
    batch: BatchSize | None = None
