"""Prepare one case: read its image and its label once, check them, and store their arrays."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data import grid
from crkd_cli.data.alignment import align_label
from crkd_cli.data.cases import RawCase, seed_of
from crkd_cli.data.foreground import sample_positions
from crkd_cli.data.labels import (
    ClassAssignment,
    CodedLabel,
    LabelValues,
    check_values,
    class_sizes,
    count_values,
    encode,
    foreground,
    merge,
    number_combinations,
)
from crkd_cli.data.raw import formats, pictures
from crkd_cli.data.raw.byte_arrays import count_bytes, look_up
from crkd_cli.data.raw.formats import Volume
from crkd_cli.data.sources.base import Source
from crkd_cli.data.store import CaseInfo, DatasetSpec, ValueStatistics
from crkd_cli.errors import CrkdError

PLAUSIBLE_SPACING = (1e-8, 1e5)  # mm: from atoms to satellite pictures


@dataclass(frozen=True)
class ImageFacts:
    """What the index says about an image."""

    shape: tuple[int, ...]  # [*S] as stored
    spacing_mm: tuple[float, ...] | None  # per stored axis
    # Of the file, in the order of the stored axes, if the image is resized or resampled.
    native_shape: tuple[int, ...] | None
    native_spacing_mm: tuple[float, ...] | None
    intensity: tuple[ValueStatistics, ...]  # of each channel of the raw image
    sha256: str  # of the image files


@dataclass
class CaseResult:
    """The state of a case after its files have been read.

    The label is read even if the image is unusable, because its values help to decide the classes.
    """

    raw: RawCase
    image: ImageFacts | None = None  # None if there is an error
    states_spacing: bool = False  # in the image file
    is_resampled: bool = False  # a channel, to the grid of the first one
    files: list[LabelValues] = field(default_factory=list)  # the label files that could be read
    turned_labels: int = 0  # of these, those whose axes differ from the image's
    # The combinations of values in the label files of the case, and their pixels or voxels.
    combinations: tuple[tuple[int, ...], ...] = ()
    sizes: tuple[int, ...] = ()
    # Set when the classes are known:
    table: NDArray[Any] | None = None  # class number of every combination
    class_sizes: tuple[int, ...] = ()  # pixels or voxels of every class
    label_sha256: str | None = None  # set when the class numbers are stored
    image_error: CrkdError | None = None
    label_error: CrkdError | None = None
    pair_error: CrkdError | None = None

    @property
    def id(self) -> str:
        """The id of the case."""
        return self.raw.id

    @property
    def file_spacing_mm(self) -> tuple[float, ...] | None:
        """The spacing of the file, in the order of the stored axes; None if it is not known."""
        if self.image is None:
            return None
        resized = self.image.native_shape is not None
        return self.image.native_spacing_mm if resized else self.image.spacing_mm

    @property
    def error(self) -> CrkdError | None:
        """The first thing that is wrong with the case."""
        return self.image_error or self.label_error or self.pair_error

    @property
    def wrong_file(self) -> Path:
        """The file that the error names, else the image."""
        files = [*self.raw.image_files, *(label.path for label in self.raw.labels)]
        named = [path for path in files if str(path) in str(self.error)]
        return max(named, key=lambda path: len(str(path)), default=self.raw.image)

    @property
    def labeled(self) -> bool:
        """Whether the case has a label."""
        return bool(self.raw.labels)


def prepare_case(
    source: Source, spec: DatasetSpec, folder: Path | None, raw: RawCase
) -> CaseResult:
    """Read, check and store a case, completely if the classes of the dataset are known."""
    result = read_case(source, raw, spec, folder)
    if spec.classes:
        unreadable = [] if result.label_error is None else [result.label_error]
        number_label(result, source.assign_classes(spec, result.files, unreadable))
        if folder is not None and result.error is None:
            return store_class_numbers(spec, folder, result)
    return result


def read_case(source: Source, raw: RawCase, spec: DatasetSpec, folder: Path | None) -> CaseResult:
    """Read and check the files of a case, and store its image and its label in `folder`.

    The label is stored as codes (see `CodedLabel`), at its native size, until
    `store_class_numbers` is called. Without `folder` nothing is stored.
    """
    result, volume, label = open_case(source, raw, spec)
    if volume is None or result.error is not None:
        return result
    try:
        _store(source, result, volume, label, spec, folder)
    except CrkdError as error:
        result.pair_error = error
    return result


def open_case(
    source: Source, raw: RawCase, spec: DatasetSpec
) -> tuple[CaseResult, Volume | None, CodedLabel | None]:
    """Read the image and the labels of a case and compare them, without storing anything.

    If the result has an error, the image or the label may be missing.
    """
    result = CaseResult(raw)
    volume: Volume | None = None
    try:
        volume = _open_image(source, raw, spec)
        result.is_resampled = volume.is_resampled
        if volume.geometry is not None:
            result.states_spacing = volume.geometry.spacing is not None
    except CrkdError as error:
        result.image_error = error
    return result, volume, _read_labels(result, volume, spec)


def _open_image(source: Source, raw: RawCase, spec: DatasetSpec) -> Volume:
    """Read the image of a case. Raises CrkdError if its spacing is implausible."""
    volume = source.open_image(raw.images, spec)
    smallest, largest = PLAUSIBLE_SPACING
    if not all(smallest <= step <= largest for step in volume.spacing_mm or ()):
        steps = ", ".join(f"{step:.3g}" for step in volume.spacing_mm or ())
        raise CrkdError(f"{raw.image} states a spacing of ({steps}) mm; correct its header")
    return volume


def number_label(result: CaseResult, assignment: ClassAssignment) -> None:
    """Set the class number of every combination of values in the label files of a case.

    A value that is not a class, or a pixel that two files give different classes, is an error of
    the case.
    """
    try:
        for file in result.files:
            check_values(file, assignment)
        if result.error is None and result.labeled:
            result.table = number_combinations(
                result.files, result.combinations, result.sizes, assignment
            )
            class_count = len(assignment.classes)
            result.class_sizes = class_sizes(result.table, result.sizes, class_count)
    except CrkdError as error:
        result.label_error = error


def store_class_numbers(spec: DatasetSpec, folder: Path, result: CaseResult) -> CaseResult:
    """Map the stored label of a case to class numbers, and bring it to the grid of its image."""
    if not result.labeled:
        return result
    assert result.table is not None
    assert result.image is not None
    file = _array_file(folder, "labels", result.raw)
    label = look_up(result.table, np.load(file))
    # Evaluation scores against the label at its native size.
    label_sha256 = hashlib.sha256(label.data).hexdigest()
    if result.image.native_shape is not None:
        _write_native_label(folder, result.raw, label)
        label = _resample_label(label, result.image, spec)
    _write_array(file, label)
    positions = sample_positions(label, len(result.class_sizes), seed_of(result.id))
    _write_array(_array_file(folder, "foreground", result.raw), positions)
    return replace(result, label_sha256=label_sha256)


def _resample_label(label: NDArray[Any], image: ImageFacts, spec: DatasetSpec) -> NDArray[Any]:
    """Return `label` [*S], which has the native size, at the size of the stored `image`."""
    if spec.dims == 2:
        # Pillow cannot resize int16.
        wide = label if label.dtype == np.uint8 else label.astype(np.int32)
        height, width = image.shape
        return pictures.resize(wide, (height, width), "nearest").astype(label.dtype, copy=False)
    assert spec.plan is not None
    assert isinstance(spec.plan.spacing, tuple)
    assert image.native_spacing_mm is not None
    target = grid.target_spacing(image.native_spacing_mm, spec.plan.spacing)
    coarse = grid.coarse_axis(image.native_spacing_mm, target)
    return grid.resample_label(label, image.shape, coarse)


def case_info(result: CaseResult, root: Path) -> CaseInfo:
    """Return the index entry of a case without an error. `root` contains the raw files."""
    assert result.image is not None
    return CaseInfo(
        id=result.raw.id,
        group=result.raw.group,
        shape=result.image.shape,
        spacing_mm=result.image.spacing_mm,
        source=_source_name(result.raw, root),
        sha256=result.image.sha256,
        label_sha256=result.label_sha256,
        intensity=result.image.intensity,
        class_sizes=result.class_sizes,
        native_shape=result.image.native_shape,
        native_spacing_mm=result.image.native_spacing_mm,
    )


def _source_name(raw: RawCase, root: Path) -> str:
    """Return the name of the first image file, unless it reveals the patient."""
    return raw.id if raw.is_private else raw.image.relative_to(root).as_posix()


def _read_labels(result: CaseResult, volume: Volume | None, spec: DatasetSpec) -> CodedLabel | None:
    """Read all label files of a case, compare them with its image, and merge them.

    The values of every file are noted even if the image or another file is unusable, because they
    help to decide the classes.
    """
    merged: CodedLabel | None = None
    for file in result.raw.labels:
        try:
            label = formats.read_label(file.path, spec.z_last, spec.description.colors)
        except CrkdError as error:
            result.label_error = result.label_error or error
            continue
        counts = count_values(label.array)
        result.files.append(LabelValues(file.path, counts, file.class_name))
        if volume is None or result.error is not None:
            continue
        try:
            array = align_label(label, volume, file.path, result.raw.image)
            result.turned_labels += array is not label.array
            coded = encode(array, counts)
            merged = coded if merged is None else merge(merged, coded)
        except CrkdError as error:
            result.pair_error = error
    return merged


def _store(
    source: Source,
    result: CaseResult,
    volume: Volume,
    label: CodedLabel | None,
    spec: DatasetSpec,
    folder: Path | None,
) -> None:
    """Write the image as the store contains it, and the label as codes."""
    raw = result.raw
    stored = source.finish(volume, raw.image, spec)
    image = stored.array
    is_resized = image.shape[1:] != stored.native_size
    if label is not None:
        label = replace(label, codes=stored.turn.apply(label.codes))
    if source.published_crop:
        mask = None if label is None else foreground(label, result.files[0].counts)
        box = source.crop(raw.id, mask)
        image = image[(slice(None), *box)]
        label = None if label is None else label.crop(box)
    if label is not None:
        result.combinations, result.sizes = label.combinations, label.sizes
    if folder is not None:
        _write_array(_array_file(folder, "images", raw), image)
        if label is not None:
            _write_array(_array_file(folder, "labels", raw), label.codes)

    result.image = ImageFacts(
        shape=image.shape[1:],
        spacing_mm=stored.spacing_mm,
        native_shape=stored.native_size if is_resized else None,
        native_spacing_mm=stored.native_spacing_mm if is_resized else None,
        intensity=value_statistics(volume.array, spec),
        sha256=_sha256(raw.image_files),
    )


def value_statistics(array: NDArray[Any], spec: DatasetSpec) -> tuple[ValueStatistics, ...]:
    """Return the statistics of each channel of an image [C, *S]; RGB is one channel."""
    channels = [array] if spec.is_color else array
    return tuple(map(_statistics_of_channel, channels))


def _statistics_of_channel(values: NDArray[Any]) -> ValueStatistics:
    if values.dtype == np.uint8:  # fast: there are few values
        counts = count_bytes(values)
        values = np.flatnonzero(counts)
        mean = float(np.average(values, weights=counts[values]))
        std = float(np.sqrt(np.average((values - mean) ** 2, weights=counts[values])))
    else:
        mean = float(values.mean(dtype=np.float64))
        std = float(values.std(dtype=np.float64))
    return ValueStatistics(min=float(values.min()), max=float(values.max()), mean=mean, std=std)


def _array_file(folder: Path, part: str, raw: RawCase) -> Path:
    return folder / part / f"{raw.id}.npy"


def _write_array(file: Path, array: NDArray[Any]) -> None:
    content = BytesIO()  # not directly to disk: NumPy does not report that it is full
    np.save(content, np.ascontiguousarray(array), allow_pickle=False)
    _write_bytes(file, content)


def _write_native_label(folder: Path, raw: RawCase, label: NDArray[Any]) -> None:
    """Write class numbers [*S] at native size: as PNG in 2D, or as .npz in 3D.

    The PNG has as many bits as the numbers need, up to 8 with a palette of grays, which is three
    times as fast as without; or 16.
    """
    from PIL import Image

    content = BytesIO()
    file = folder / "native" / f"{raw.id}.{'png' if label.ndim == 2 else 'npz'}"
    if label.ndim == 2:
        unsigned = label if label.dtype == np.uint8 else label.astype(np.uint16)
        image = Image.fromarray(unsigned)
        if unsigned.dtype == np.uint8:
            grays = np.linspace(0, 255, int(label.max()) + 1).astype(np.uint8)
            image.putpalette(np.repeat(grays, 3).tobytes())
        image.save(content, format="PNG")
    else:
        np.savez_compressed(content, label=label)
    _write_bytes(file, content)


def _write_bytes(file: Path, content: BytesIO) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content.getbuffer())


def _sha256(files: Sequence[Path]) -> str:
    """Return the digest of a file, or that of the digests of several."""
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
