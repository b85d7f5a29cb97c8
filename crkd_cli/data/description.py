"""The description of a dataset: what its files mean, decided once for all of them.

Everything in it can be inferred from the files. What a user states in `dataset.yaml` (or nnU-Net's
`dataset.json`) is used instead. The description of a prepared dataset is complete: the inferred
parts are filled in. It is part of the store and of every checkpoint.
"""

from typing import Annotated, Literal

import msgspec

from crkd_cli.config import Strict

ChannelModality = Literal["MR", "CT", "RGB", "gray"]
Millimeters = Annotated[float, msgspec.Meta(gt=0.0, lt=1e4)]


class Channel(Strict, frozen=True):
    """A channel of the images; the three colors of a photograph are one channel, RGB."""

    name: str
    modality: ChannelModality


class Description(Strict, frozen=True):
    """What the files of a dataset mean. None: infer it.

    Patterns are relative to the folder of the raw files, with `*` for any text and `{name}` for the
    name of a case.
    """

    channels: tuple[Channel, ...] | None = None
    # Foreground classes by name, each with its value in the label files or with several.
    classes: dict[str, int | tuple[int, ...]] | None = None
    ignore: int | None = None  # the label value of pixels that count in no loss and no score
    images: str | None = None  # "images/*.png"
    # "labels/{name}_mask*.png", or a pattern per class if each class has its own files.
    labels: str | dict[str, str] | None = None
    patients: str | None = None  # a CSV file, or a pattern with {patient}: "{patient}_*"
    # In mm per axis of the stored images, for files that do not state it.
    spacing: tuple[Millimeters, ...] | None = None
