"""The interface of data sources, the only code that knows the layout of raw files."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.cases import ImageFile, RawCase
from crkd_cli.data.description import Description
from crkd_cli.data.grid import StoredImage, bring_to_plan, keep_grid
from crkd_cli.data.inventory import FileRecord
from crkd_cli.data.labels import ClassAssignment, LabelValues, fixed_numbers
from crkd_cli.data.raw import formats, pictures
from crkd_cli.data.raw.download import Remote
from crkd_cli.data.raw.formats import Volume
from crkd_cli.data.raw.limits import enough_memory
from crkd_cli.data.stacking import stack
from crkd_cli.data.store import ChannelInfo, DatasetSpec, Window
from crkd_cli.errors import CrkdError, pluralize
from crkd_cli.progress import Advance
from crkd_cli.text import channel_title

# Values at most this many times their spread away from 0 are exact to 1e-6 of the spread.
MAX_OFFSET_FLOAT32, MAX_OFFSET = 2.0**4, 2.0**33
MIN_WINDOW_SHARE = 0.1  # that the values of a CT image cover
SMALLEST, LARGEST = 1e-140, 1e140  # squares of values in between do not overflow


class Source(ABC):
    """The layout of a raw dataset: finds its files, and reads images as the store contains them.

    A plug-in implements `find` and `spec`, and overrides the other methods where its layout
    differs. `find` adds to `notes` and `remarks` what it chose or ignored, and records in `files`
    why files are left out or refused.

    Args:
        spacing_mm: Used where files do not state it; one number, or one per axis of *S.
        published_crop: Crop images around the label. For sources that override `crop`.
        ignore: Label value to ignore, which overrides that of a description. For sources that
            override `assign_classes`.
    """

    archives: ClassVar[tuple[str, ...]] = ()  # patterns of the names that users' archives have
    remote: ClassVar[tuple[Remote, ...]] = ()  # files that are public without registration
    where: ClassVar[str] = ""  # how to get the raw files by hand
    reads_description: ClassVar[bool] = False  # `dataset.yaml`; else the description is fixed
    generated: ClassVar[bool] = False  # made by `generate`; there are no raw files to get

    def __init__(
        self,
        spacing_mm: tuple[float, ...] | None = None,
        published_crop: bool = False,
        ignore: int | None = None,
    ) -> None:
        self.spacing_mm = spacing_mm
        self.published_crop = published_crop
        self.ignore = ignore
        self.notes: list[str] = []
        self.remarks: list[str] = []  # to be shown, but not stored
        self.files = FileRecord()
        self.description = Description()  # what is stated about the files, not inferred

    @abstractmethod
    def find(self, root: Path) -> list[RawCase]:
        """Return the cases under `root`, sorted by id.

        Raises CrkdError, which names the supported layouts, if there are none.
        """

    @abstractmethod
    def spec(self, name: str, cases: list[RawCase]) -> DatasetSpec:
        """Return what all cases of the dataset have in common. Reads headers at most.

        `classes` is empty if they follow from the labels: see `assign_classes`.
        """

    def assign_classes(
        self, spec: DatasetSpec, labels: Sequence[LabelValues], unreadable: Sequence[CrkdError]
    ) -> ClassAssignment:
        """Decide what the values in the label files mean.

        If `spec.classes` is empty, `labels` are those of all cases, and this method also decides
        which classes there are. `unreadable` are the errors of the labels that could not be read.
        """
        class_count = len(spec.classes)
        numbers = {label.path: fixed_numbers(label.counts, class_count) for label in labels}
        return ClassAssignment(spec.classes, numbers)

    def generate(self, folder: Path, advance: Advance) -> None:
        """Write the raw files into the empty `folder` (of sources that are `generated`)."""
        raise NotImplementedError

    def open_image(self, images: Sequence[ImageFile], spec: DatasetSpec) -> Volume:
        """Read the image files of a case, with the values of the files and their axes.

        Raises CrkdError if one cannot be read, or if the image does not fit the dataset.
        """
        # Channels must have the same size before they are resized.
        resized_to = spec.stored_size if len(images) == 1 else None
        volumes = []
        for image in images:
            volume = formats.read_image(
                image.path, spec.z_last, spec.channel_names, image.slices, resized_to
            )
            count = spec.channel_count if image.channel is None else 1
            array = _match_channels(volume.array, spec, count)
            _check_image(array, image, spec)
            volumes.append(replace(volume, array=array))
        with enough_memory(images[0].path):
            volume = stack(volumes, images)
        return replace(volume, spacing_mm=volume.spacing_mm or spec.description.spacing)

    def finish(self, volume: Volume, path: Path, spec: DatasetSpec) -> StoredImage:
        """Normalize an opened image, and resize it or bring it to the grid of the plan.

        Raises CrkdError if its values cannot be normalized, if its spacing is needed but unknown,
        or if memory runs out.
        """
        with enough_memory(path):
            # Overflow is refused below, with the file's name.
            with np.errstate(all="ignore"):
                array = self.normalize(volume.array, path, spec)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise CrkdError(f"{path} has values that are too large; rescale or remove it")
            if spec.stored_size is not None:
                array = pictures.resize(array, spec.stored_size, "bilinear")
            if spec.plan is None or spec.dims == 2:
                return keep_grid(volume, array)
            return bring_to_plan(replace(volume, array=array), spec.plan, path)

    def normalize(self, array: NDArray[Any], path: Path, spec: DatasetSpec) -> NDArray[Any]:
        """Normalize every channel of an image [C, *S] as its `intensity` says.

        Returns uint8 unchanged for `uint8`, else float32, exact to 1e-6 of the range. Raises
        CrkdError if the values are too large or too close together for that.
        """
        if spec.is_color:
            return array
        normalized = np.empty(array.shape, np.float32)
        for channel, values, target in zip(spec.channels, array, normalized, strict=True):
            name = _name(path, channel.name if len(array) > 1 else None)
            target[...] = _normalize_channel(values, channel, name)
        return normalized

    def crop(self, case: str, foreground: NDArray[np.bool_] | None) -> tuple[slice, ...]:
        """Return the part of *S that is stored with `published_crop`.

        `foreground` [*S] is where the label is not background; None for an unlabeled case.
        """
        raise NotImplementedError


def _normalize_channel(array: NDArray[Any], channel: ChannelInfo, name: str) -> NDArray[Any]:
    """Normalize the values [*S] of a channel by its window, or by statistics of the image."""
    smallest, largest = float(array.min()), float(array.max())
    if channel.window is not None:
        return _apply_window(array, channel.window, (smallest, largest), name)
    low, high = smallest, largest
    if channel.intensity == "zscore":
        low = float(array.mean(dtype=np.float64))
        high = low + float(array.std(dtype=np.float64))
    spread = high - low
    _check_values(max(abs(smallest), abs(largest)), low, spread, name)
    dtype = _working_dtype(array.dtype, low, spread, largest - smallest)
    values: NDArray[Any] = array.astype(dtype)
    values -= low
    values /= spread
    return values


def _apply_window(
    array: NDArray[Any], window: Window, extremes: tuple[float, float], name: str
) -> NDArray[Any]:
    """Clip the values [*S] of a channel to the window and normalize them.

    Raises CrkdError if they lie beside the window, such as those of a scan that was normalized.
    """
    width = window.high - window.low
    covered = min(extremes[1], window.high) - max(extremes[0], window.low)
    if covered < MIN_WINDOW_SHARE * width:
        raise CrkdError(
            f"{name} has values from {extremes[0]:.6g} to {extremes[1]:.6g}, but the CT images of "
            f"this dataset are clipped to {window.low:.6g} … {window.high:.6g}; convert it to the "
            "same units (Hounsfield), or remove it"
        )
    _check_values(max(-window.low, window.high), window.mean, window.std, name)
    values: NDArray[Any] = array.astype(_working_dtype(array.dtype, window.mean, window.std, width))
    np.clip(values, window.low, window.high, out=values)
    values -= window.mean
    values /= window.std
    return values


def _check_values(largest: float, low: float, spread: float, name: str) -> None:
    """Raise CrkdError unless values up to `largest` in size can be normalized in float64."""
    if largest > LARGEST:
        raise CrkdError(f"{name} has values that are too large; rescale or remove it")
    if spread < SMALLEST or abs(low) > MAX_OFFSET * spread:
        raise CrkdError(
            f"{name} has values that are too close together to tell them apart (spread "
            f"{spread:.3g} at {low:.6g}); subtract an offset and rescale them, or remove it"
        )


def _working_dtype(
    dtype: np.dtype[Any], low: float, spread: float, value_range: float
) -> type[np.float32] | type[np.float64]:
    """Return float32 if the values of an image can be normalized in it, else float64."""
    limits = np.finfo(np.float32)
    is_exact = abs(low) <= MAX_OFFSET_FLOAT32 * spread
    is_in_range = float(limits.tiny) <= spread and value_range <= float(limits.max)
    return np.float32 if dtype.itemsize <= 4 and is_exact and is_in_range else np.float64


def _match_channels(array: NDArray[Any], spec: DatasetSpec, count: int) -> NDArray[Any]:
    """Convert gray [1, *S] to RGB, or gray RGB to [1, *S] if there are `count` = 1 channels."""
    if spec.is_color and len(array) == 1:
        return np.repeat(array, 3, axis=0)
    if count == 1 and len(array) == 3 and (array == array[:1]).all():
        return array[:1]
    return array


def _check_image(array: NDArray[Any], image: ImageFile, spec: DatasetSpec) -> None:
    """Raise CrkdError unless the values of an image file fit the dataset and can be normalized."""
    path = image.path
    dims = array.ndim - 1
    if dims != spec.dims:
        raise CrkdError(
            f"{path} is {dims}D, but the dataset {spec.name} is {spec.dims}D; remove it"
        )
    _check_channel_count(len(array), image, spec)
    if spec.is_color and array.dtype != np.uint8:
        raise CrkdError(
            f"{path} has {array.dtype} values, but the dataset {spec.name} has 8 bits; convert it"
        )
    if spec.is_color or len(array) == 1:
        _check_values_exist(array, path, image.channel)
    else:
        for values, channel in zip(array, spec.channel_names, strict=True):
            _check_values_exist(values, path, channel)


def _name(path: Path, channel: str | None) -> str:
    """Return the name of an image, or of its channel, for messages."""
    return f"{path}" if channel is None else f"{path} ({channel_title(channel)})"


def _check_channel_count(count: int, image: ImageFile, spec: DatasetSpec) -> None:
    if image.channel is not None and count > 1:
        raise CrkdError(
            f"{image.path} has {count} channels, but is {channel_title(image.channel)} of its "
            "case; give a file per channel, or one file with all of them"
        )
    if image.channel is None and count != spec.channel_count:
        names = f" ({', '.join(spec.channel_names)})" if len(spec.channels) > 1 else ""
        raise CrkdError(
            f"{image.path} has {pluralize(count, 'channel')}, but the dataset {spec.name} has "
            f"{spec.channel_count}{names}; convert it"
        )


def _check_values_exist(array: NDArray[Any], path: Path, channel: str | None) -> None:
    """Raise CrkdError if an image or its `channel` is constant or has values like NaN."""
    name = _name(path, channel)
    if array.dtype.kind == "f" and (count := np.count_nonzero(~np.isfinite(array))):
        raise CrkdError(f"{name} contains {count} NaN or infinite values; repair or remove it")
    if array.min() == array.max():
        raise CrkdError(f"{name} is constant, every value is {array.flat[0]}; remove it")
