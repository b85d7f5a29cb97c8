"""Decide what the values of each channel are, and measure how CT is normalized.

The modality of a channel is the described one, or that of its DICOM files. Otherwise, volumes whose
values look like Hounsfield units are CT.

The values of CT mean the same in all scans, so all of them are normalized alike: clipped to the
percentiles 0.5 and 99.5 of the values in the labeled foreground of the dataset, and scaled by their
mean and standard deviation (Isensee et al., nnU-Net, 2021).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.cases import RawCase, seed_of
from crkd_cli.data.classes import BACKGROUND
from crkd_cli.data.description import ChannelModality
from crkd_cli.data.labels import CodedLabel, LabelValues
from crkd_cli.data.prepare_case import open_case
from crkd_cli.data.raw import formats
from crkd_cli.data.sources.base import Source
from crkd_cli.data.splits import preview
from crkd_cli.data.store import ChannelInfo, DatasetSpec, ValueStatistics, Window, intensity_of
from crkd_cli.data.workers import map_cases
from crkd_cli.errors import CrkdError, pluralize
from crkd_cli.progress import Progress
from crkd_cli.text import channel_title

Modalities = tuple[ChannelModality | None, ...]  # of the channels; None: unknown

# By the tag of DICOM files; others, such as PT and DX, are gray.
DICOM_MODALITIES: dict[str, ChannelModality | None] = {
    "CT": "CT",
    "MR": "MR",
    "OT": None,  # other
    "SC": None,  # screenshots
}
CHECKED_CASES = 5  # whose values and tags decide the modalities
CHECKED_VALUES = 1 << 20  # of a volume, at regular intervals
SAMPLES = 10_000  # foreground voxels of a case, so that large cases do not dominate
PERCENTILES = (0.5, 99.5)

# Hounsfield units: values below PADDING are outside of what the scanner sees.
PADDING, LUNG, AIR, LARGEST = -1100, -700, -500, 3100
SOFT_TISSUE, BETWEEN = (-200, 300), (-500, -200)


class ForegroundSample(NamedTuple):
    """Values in the labeled foreground of a case, or why there are none."""

    values: NDArray[np.float64]  # [C, N] of the channels that are CT
    error: CrkdError | None = None


def decide_intensities(
    source: Source,
    cases: Sequence[RawCase],
    spec: DatasetSpec,
    progress: Progress,
    workers: int = 1,
) -> DatasetSpec:
    """Return `spec` with the modalities that are not described, and with the windows of CT.

    Cases that cannot be read are left out: they are reported when the cases are stored. Raises
    CrkdError if there is CT but no labeled foreground.
    """
    channels = _choose_modalities(source, cases, spec)
    spec = msgspec.structs.replace(spec, channels=channels)
    channels = _measure_windows(source, cases, spec, progress, workers)
    return msgspec.structs.replace(spec, channels=channels)


def looks_like_ct(values: NDArray[Any]) -> bool:
    """Tell whether the values of a volume look like Hounsfield units.

    They do if, apart from padding,

    - 0.1 % or more are air or lung (below -500), and at least half of these below -700;
    - 5 % or more are soft tissue (-200 to 300);
    - values in between are less than half as dense, to be precise: less than 0.45 of the sum of
      the densities of air and soft tissue;
    - 2 % at most are larger than what scanners measure.

    MR and PET have no values of air, and those of phase images and differences are spread evenly or
    around 0.
    """
    flat = values.ravel()
    flat = flat[:: 1 + flat.size // CHECKED_VALUES]
    flat = flat[flat >= PADDING]

    def share(low: float, high: float) -> float:
        return float(np.count_nonzero((flat >= low) & (flat < high))) / max(flat.size, 1)

    def density(low: float, high: float) -> float:
        return share(low, high) / (high - low)

    air = share(PADDING, AIR)
    return (
        air >= 0.001
        and share(PADDING, LUNG) >= 0.5 * air
        and share(*SOFT_TISSUE) >= 0.05
        and share(PADDING, LARGEST) >= 0.98
        and density(*BETWEEN) < 0.45 * (density(*SOFT_TISSUE) + density(PADDING, AIR))
    )


def channel_lines(
    channels: Sequence[ChannelInfo], statistics: Sequence[Sequence[ValueStatistics]]
) -> list[str]:
    """Return a line per channel: name, modality, range of values, and normalization.

    `statistics` are those of each channel in every case.
    """
    lines = []
    for number, info in enumerate(channels):
        lowest = min(of_case[number].min for of_case in statistics)
        highest = max(of_case[number].max for of_case in statistics)
        line = f"{channel_title(info.name)} ({info.modality}): values {lowest:.6g} to {highest:.6g}"
        if info.window is not None:
            line += f", {_describe(info.window)}"
        lines.append(line)
    return lines


def note_unlike_ct(
    channels: Sequence[ChannelInfo], statistics: Mapping[str, Sequence[ValueStatistics]]
) -> Iterable[str]:
    """Note the cases of a CT dataset that lack negative values, unlike most others.

    `statistics` are those of each channel, by case.
    """
    for number, info in enumerate(channels):
        if info.modality != "CT":
            continue
        lowest = {case: of_case[number].min for case, of_case in statistics.items()}
        unlike = [case for case, value in lowest.items() if value >= 0]
        with_air = sum(value <= AIR for value in lowest.values())
        if unlike and with_air > len(unlike):
            yield (
                f"images without negative values in {channel_title(info.name)}, so perhaps not in "
                f"Hounsfield units as the others: {preview(unlike)}"
            )


def _choose_modalities(
    source: Source, cases: Sequence[RawCase], spec: DatasetSpec
) -> tuple[ChannelInfo, ...]:
    """Return the channels with their modalities: as described, or those of most of a few cases.

    Notes of the source say what was recognized as CT, and which cases contradict a modality.
    """
    described = {channel.name: channel.modality for channel in spec.description.channels or ()}
    if spec.is_color or all(described.get(info.name) for info in spec.channels):
        return spec.channels
    few = cases[:: 1 + max(len(cases) - 1, 0) // CHECKED_CASES]
    tagged = {case.id: _dicom_modalities(case, spec) for case in few}
    guessed: dict[str, Modalities] = {}
    if spec.dims == 3 and any(None in modalities for modalities in tagged.values()):
        guessed = {case.id: _guess_modalities(source, case, spec) for case in few}

    channels = []
    for number, info in enumerate(spec.channels):
        if described.get(info.name) is None:
            tags, guesses = _votes(tagged, number), _votes(guessed, number)
            info = _with_modality(info, _elect(tags or guesses, info.modality), spec.dims)
            if info.modality == "CT" and not tags:
                source.notes.append(_note_ct(info, spec))
            source.notes += _note_contradictions(info, tags or guesses)
        channels.append(info)
    return tuple(channels)


def _dicom_modalities(case: RawCase, spec: DatasetSpec) -> Modalities:
    """Return the modalities that DICOM files state."""
    count = len(spec.channels)
    images = case.images if len(case.images) == count else case.images[:1] * count
    modalities: list[ChannelModality | None] = []
    for image in images:
        try:
            tag = formats.probe(image.path).modality
        except CrkdError:
            tag = ""
        modalities.append(DICOM_MODALITIES.get(tag, "gray" if tag else None))
    return tuple(modalities)


def _guess_modalities(source: Source, case: RawCase, spec: DatasetSpec) -> Modalities:
    """Return CT or MR for every channel of a volume, by its values."""
    try:
        array = source.open_image(case.images, spec).array
    except CrkdError:
        return (None,) * len(spec.channels)
    return tuple("CT" if looks_like_ct(values) else "MR" for values in array)


def _votes(modalities: Mapping[str, Modalities], channel: int) -> dict[str, ChannelModality]:
    """Return the modality of a channel by case, as far as it is known."""
    votes = {case: of_case[channel] for case, of_case in modalities.items()}
    return {case: modality for case, modality in votes.items() if modality is not None}


def _elect(votes: Mapping[str, ChannelModality], default: ChannelModality) -> ChannelModality:
    """Return the modality of most cases; `default` if no case has one, or at a tie."""
    counts = Counter(votes.values()).most_common(2)
    if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
        return default
    return counts[0][0]


def _with_modality(info: ChannelInfo, modality: ChannelModality, dims: int) -> ChannelInfo:
    intensity = intensity_of(modality, dims)
    return msgspec.structs.replace(info, modality=modality, intensity=intensity)


def _note_ct(info: ChannelInfo, spec: DatasetSpec) -> str:
    described = (
        f"{{name: {name}, modality: MR}}" if name == info.name else f"{{name: {name}}}"
        for name in spec.channel_names
    )
    return (
        f"{channel_title(info.name)} looks like CT (Hounsfield units) and is normalized as CT; "
        f"if it is not, describe it: channels: [{', '.join(described)}]"
    )


def _note_contradictions(info: ChannelInfo, votes: Mapping[str, ChannelModality]) -> Iterable[str]:
    """Note which cases contradict the modality of a channel."""
    others = [case for case, modality in votes.items() if modality != info.modality]
    if others:
        yield (
            f"{channel_title(info.name)} is taken as {info.modality}, but of "
            f"{pluralize(len(votes), 'image')} checked, these look different: {preview(others)}"
        )


def _measure_windows(
    source: Source,
    cases: Sequence[RawCase],
    spec: DatasetSpec,
    progress: Progress,
    workers: int,
) -> tuple[ChannelInfo, ...]:
    """Return the channels with the windows of CT."""
    windowed = [number for number, info in enumerate(spec.channels) if info.intensity == "window"]
    if not windowed:
        return spec.channels
    labeled = [case for case in cases if case.labels]
    sample = partial(_sample_foreground, source, spec, windowed)
    samples = map_cases(sample, labeled, workers, progress, "measuring CT")
    if not any(sample.values.size for sample in samples):
        raise _why_no_foreground(samples)
    values = np.concatenate([sample.values for sample in samples], axis=1)
    channels = list(spec.channels)
    for number, of_channel in zip(windowed, values, strict=True):
        info = channels[number]
        channels[number] = msgspec.structs.replace(info, window=_window(of_channel, info))
    return tuple(channels)


def _sample_foreground(
    source: Source, spec: DatasetSpec, channels: Sequence[int], case: RawCase
) -> ForegroundSample:
    """Draw values from the foreground of a labeled case; which ones depends on its id alone."""
    result, volume, label = open_case(source, case, spec)
    empty = np.empty((len(channels), 0))
    if volume is None or label is None or result.error is not None:
        return ForegroundSample(empty, result.error)
    positions = np.flatnonzero(_is_foreground(result.files, label, spec)[label.codes])
    if len(positions) > SAMPLES:
        rng = np.random.default_rng(seed_of(case.id))
        positions = rng.choice(positions, SAMPLES, replace=False, shuffle=False)
    images = [volume.array[number].ravel()[positions] for number in channels]
    return ForegroundSample(np.stack(images).astype(np.float64))


def _is_foreground(
    files: Sequence[LabelValues], label: CodedLabel, spec: DatasetSpec
) -> NDArray[np.bool_]:
    """Tell for every combination of values whether a file has an object there.

    Which classes there are is decided later. So all values count but those that are background or
    ignored.
    """
    stated = (spec.description.class_values or {}).get(BACKGROUND.name, ())
    not_foreground = {0, spec.ignore, *((stated,) if isinstance(stated, int) else stated)}

    def has_object(values: Sequence[int]) -> bool:
        for file, value in zip(files, values, strict=True):
            excluded = not_foreground if file.class_name is None else {0}
            if value not in excluded:
                return True
        return False

    return np.array([has_object(values) for values in label.combinations])


def _why_no_foreground(samples: Sequence[ForegroundSample]) -> CrkdError:
    """Return the first error of the labeled cases, else that they have no foreground."""
    for sample in samples:
        if sample.error is not None:
            return sample.error
    return CrkdError(
        "CT is normalized by its values in the labeled foreground, but no label contains an "
        "object; add one that does, or describe the channel as MR"
    )


def _window(values: NDArray[np.float64], info: ChannelInfo) -> Window:
    """Return the window of the values [N] of a channel, whatever their order."""
    values = np.sort(values)
    with np.errstate(all="ignore"):  # values that are too large are refused when they are used
        low, high = np.percentile(values, PERCENTILES).tolist()
        mean, std = float(values.mean()), float(values.std())
    if low == high:
        raise CrkdError(
            f"{channel_title(info.name)} is CT, but most values in the labeled foreground are "
            f"{low:.6g}; check whether images and labels match, or describe the channel as MR"
        )
    return Window(low=low, high=high, mean=mean, std=std)


def _describe(window: Window) -> str:
    return (
        f"clipped to {window.low:.4g} … {window.high:.4g}, normalized by mean {window.mean:.4g} "
        f"and standard deviation {window.std:.4g} (labeled foreground)"
    )
