"""The description of a dataset: how its files are read.

Everything in it can be inferred from the files; what a user states in `dataset.yaml` (or nnU-Net's
`dataset.json`) takes precedence. In a prepared dataset, the inferred parts are filled in. The
description is part of the store and of every checkpoint.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import yaml

from crkd_cli.config import Strict, parse
from crkd_cli.data import nnunet, patterns
from crkd_cli.data.class_values import (
    LabelValue,
    check_classes,
    convert_numbers,
    value_by_color,
    values_by_class,
)
from crkd_cli.data.plan import Millimeters, Plan
from crkd_cli.data.raw.colors import parse_color
from crkd_cli.data.raw.limits import check_regular
from crkd_cli.errors import UsageError
from crkd_cli.yaml_text import parse_yaml, read_text

ChannelModality = Literal["MR", "CT", "RGB", "gray"]
FILES = ("dataset.yaml", "dataset.yml", "dataset.json")  # the first that exists is read


class Channel(Strict, frozen=True):
    """A channel of the images; the three colors of a photograph are one channel, RGB."""

    name: str = "image"
    modality: ChannelModality | None = None


class Description(Strict, frozen=True):
    """How the files of a dataset are read. None: infer it.

    Patterns are relative to the folder of the raw files, with `*` for any text and `{name}` for the
    name of a case.
    """

    channels: tuple[Channel, ...] | None = None
    # Classes by name, with one or several values in the label files, all of them numbers or all
    # colors. The background need not be listed unless it has values besides 0 or black.
    classes: dict[str, LabelValue | tuple[LabelValue, ...]] | None = None
    ignore: LabelValue | None = None  # its pixels count in no loss or score
    # "images/*.png", or a pattern per channel if each channel has its own files.
    images: str | dict[str, str] | None = None
    # Of DICOM: the descriptions or UIDs of the series to read, with `*` for any text, or those of
    # each channel.
    series: str | dict[str, str] | None = None
    # "labels/{name}_mask*.png", or a pattern per class if each class has its own files.
    labels: str | dict[str, str] | None = None
    patients: str | None = None  # a CSV file, or a pattern with {patient}: "{patient}_*"
    # In mm per axis of the files, z first, for those that do not state it.
    spacing: tuple[Millimeters, ...] | None = None
    plan: Plan | None = None  # overrides what is inferred from the images

    def __post_init__(self) -> None:
        check_classes(self.classes, self.ignore)
        _check_channels(self)
        for pattern in self.image_patterns.values():
            needed = "" if isinstance(self.images, str) else "name"
            patterns.check("images", pattern, allowed=("name",), needed=needed)
        if "background" in self.label_patterns:
            raise ValueError("labels: the background needs no files; drop its pattern")
        for pattern in self.label_patterns.values():
            patterns.check("labels", pattern, allowed=("name",), needed="name")
        if self.patients is not None:
            needed = "" if self.patients.lower().endswith(".csv") else "patient"
            patterns.check("patients", self.patients, allowed=("patient",), needed=needed)
        if self.spacing is not None and len(self.spacing) not in (2, 3):
            raise ValueError(f"spacing has {len(self.spacing)} numbers; give one per axis")

    def ignoring(self, value: int) -> Self:
        """Return the description with this value to ignore. Raises UsageError if it is a class."""
        try:
            return msgspec.structs.replace(self, ignore=value)
        except ValueError as error:
            raise UsageError(f"--ignore {value}: {error}") from None

    @property
    def class_values(self) -> dict[str, int | tuple[int, ...]] | None:
        """The classes with their label values: 1, 2, … in their order if they are colors."""
        return None if self.classes is None else values_by_class(self.classes)

    @property
    def ignored_value(self) -> int | None:
        """The label value of ignored pixels: if it is a color, the one after those of classes."""
        if isinstance(self.ignore, str):
            return 1 + len(self.class_values or ())
        return self.ignore

    @property
    def colors(self) -> dict[int, int]:
        """The label value of every color (0xRRGGBB); empty if the classes are numbers."""
        colors = value_by_color(self.classes or {})
        if isinstance(self.ignore, str) and self.ignored_value is not None:
            colors[parse_color(self.ignore)] = self.ignored_value
        return colors

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The names of the channels in their order; empty if they are not described."""
        if self.channels is not None:
            return tuple(channel.name for channel in self.channels)
        stated = self.series if isinstance(self.series, dict) else self.images
        return tuple(stated) if isinstance(stated, dict) else ()

    @property
    def image_patterns(self) -> dict[str | None, str]:
        """The patterns of the image files by channel, in order; None: a file has all channels."""
        by_channel = _by_name(self.images)
        order = self.channel_names if isinstance(self.images, dict) else tuple(by_channel)
        return {name: by_channel[name] for name in order}

    @property
    def series_by_channel(self) -> str | dict[str, str] | None:
        """Which DICOM series to read; those of channels are in their order."""
        if not isinstance(self.series, dict):
            return self.series
        return {name: self.series[name] for name in self.channel_names}

    @property
    def label_patterns(self) -> dict[str | None, str]:
        """The patterns of the label files by class; None: the class depends on the value."""
        return _by_name(self.labels)

    def below(self, folder: str) -> "Description":
        """Return the description with `folder` prepended to its patterns."""
        if not folder:
            return self
        patients = self.patients
        if patients is not None and ("/" in patients or patients.lower().endswith(".csv")):
            patients = f"{folder}/{patients}"
        images, labels = _below(self.images, folder), _below(self.labels, folder)
        return msgspec.structs.replace(self, images=images, labels=labels, patients=patients)


def read_description(file: Path) -> Description:
    """Read `dataset.yaml`, or nnU-Net's `dataset.json`.

    Raises UsageError, which names the key, if it cannot be read or is invalid, and CrkdError if it
    is not a regular file.
    """
    check_regular(file)
    try:
        text = read_text(file)
        tree = json.loads(text) if file.suffix == ".json" else parse_yaml(text)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        kind = "JSON" if file.suffix == ".json" else "YAML"
        reason = " ".join(str(error).split())
        raise UsageError(f"{file} is not valid {kind} ({reason}); correct it") from None
    if tree is None:  # an empty file: everything is inferred
        tree = {}
    if not isinstance(tree, dict):
        raise UsageError(
            f"{file} is not a description; expected lines such as classes: {{liver: 1}}"
        )
    for key in tree:
        if not isinstance(key, str):
            raise UsageError(f"{file}: the key {key!r} is not a word; use classes, images …")
    if file.suffix == ".json":
        tree = nnunet.description_tree(tree, file)
    _convert_values(tree)
    description: Description = parse(tree, Description, str(file))
    return description


def to_yaml(description: Description) -> str:
    """Return a description as the lines of a `dataset.yaml`, one per key that has a value."""
    lines = []
    for key, value in stated(description).items():
        text = yaml.safe_dump(
            {key: value}, default_flow_style=True, allow_unicode=True, sort_keys=False, width=120
        )
        lines.append(f"{text.strip()[1:-1]}\n")  # without the braces
    return "".join(lines)


def stated(description: Strict) -> dict[str, Any]:
    """Return the keys of a description, or of a part of it, that have a value."""
    tree: dict[str, Any] = msgspec.to_builtins(description)
    if isinstance(tree.get("plan"), dict):
        tree["plan"] = {key: value for key, value in tree["plan"].items() if value is not None}
    return {key: value for key, value in tree.items() if value is not None}


def _by_name(given: str | dict[str, str] | None) -> dict[str | None, str]:
    """Return patterns by the names they are given for; None stands for a pattern without a name."""
    if given is None:
        return {}
    if isinstance(given, str):
        return {None: given}
    by_name: dict[str | None, str] = {}
    by_name.update(given)
    return by_name


def _below(given: str | dict[str, str] | None, folder: str) -> str | dict[str, str] | None:
    """Prepend `folder` to patterns."""
    if given is None or isinstance(given, str):
        return given and f"{folder}/{given}"
    return {name: f"{folder}/{pattern}" for name, pattern in given.items()}


def _convert_values(tree: dict[str, Any]) -> None:
    """Convert the label values, and drop the background if its only value is 0, as it always is.

    An unquoted color is a comment in YAML, so the class has no value.
    """
    if "ignore" in tree:
        tree["ignore"] = convert_numbers(tree["ignore"])
    if isinstance(classes := tree.get("classes"), dict):
        values = {
            name: [] if value is None else convert_numbers(value) for name, value in classes.items()
        }
        if values.get("background") in (0, [0]):
            del values["background"]
        tree["classes"] = values


def _check_channels(description: Description) -> None:
    """Raise ValueError unless the channels have different names, and the patterns have theirs."""
    names = description.channel_names
    if description.channels == ():
        raise ValueError("channels is empty; name one, or drop the line")
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"channels: {count} are called {name!r}; give each its own name")
    if len(names) > 1 and any(x.modality == "RGB" for x in description.channels or ()):
        raise ValueError("channels: RGB cannot be combined with other channels; list it alone")
    for key in ("images", "series"):
        stated = getattr(description, key)
        if isinstance(stated, dict) and set(stated) != set(names):
            raise ValueError(
                f"{key} has patterns for {', '.join(stated)}, but the channels are "
                f"{', '.join(names)}; use the same names"
            )
