"""Group image files into the images of cases: one file with all channels, or one per channel.

The files of channels are numbered, as nnU-Net's c_0000 and c_0001, or a description has a pattern
for each channel.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from crkd_cli.data import patterns
from crkd_cli.data.cases import ImageFile
from crkd_cli.data.inventory import FileRecord, RawFile
from crkd_cli.data.layout import UNSUPPORTED
from crkd_cli.data.naming import (
    Candidate,
    Key,
    case_ids,
    channel_groups,
    channel_number,
    label_keys,
    numbered_files,
    read_by_pattern,
    split_masks,
    with_channel_number,
)
from crkd_cli.data.raw import formats
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import pluralize
from crkd_cli.text import channel_title, printable

Patterns = Mapping[str | None, str]  # by channel or class; None: all of them


class Image(NamedTuple):
    """The image of a case."""

    files: tuple[RawFile, ...]  # one with all channels, or one per channel in their order
    id: str
    key: Key = ("", "")  # see Candidate; the name has no channel
    channels: tuple[str, ...] = ()  # the names of those of `files`; empty: one file has all
    problem: str = ""  # a sentence: why the case cannot be used

    @property
    def image_files(self) -> tuple[ImageFile, ...]:
        """The files with the names of their channels."""
        dicom = self.files[0].dicom
        if dicom is not None and len(self.files) == 1:
            return dicom.images
        names = self.channels or (None,)
        pairs = zip(self.files, names, strict=True)
        return tuple(ImageFile(file.path, channel=name) for file, name in pairs)


def default_names(count: int) -> tuple[str, ...]:
    """Return the names of `count` channels that are not described."""
    return ("image",) if count == 1 else tuple(f"channel {number}" for number in range(count))


def name_images(
    images: Sequence[Candidate], labeled: set[Key], names: Sequence[str] = ()
) -> tuple[list[Image], list[Candidate]]:
    """Return the images with their ids, and the masks among them by their names.

    `labeled` are the keys of images that labels elsewhere may belong to, and `names` the channels
    in the description; without them, the files of most cases decide how many there are.
    """
    kept, masks = split_masks(images, labeled)
    groups = channel_groups(kept, labeled | label_keys(masks))
    names = names or default_names(_usual_count(groups.values()))
    numbered = {image for group in groups.values() for image in group}
    others = [image for image in kept if image not in numbered]
    ids = case_ids([*groups, *(image.key for image in others)])
    named = [
        _numbered_image(group, id, key, names)
        for (key, group), id in zip(groups.items(), ids, strict=False)
    ]
    for image, id in zip(others, ids[len(groups) :], strict=True):
        named.append(Image((image.file,), image.file.private_id or id, image.key))
    return named, masks


def images_by_pattern(
    files: Sequence[RawFile], image_patterns: Patterns, label_patterns: Patterns, record: FileRecord
) -> list[Image]:
    """Return the images whose files match the pattern of all channels, or those of each channel.

    The channels are in the order of `image_patterns`. Files that are labels of other images are
    left out.
    """
    readings = [reading for file in files for reading in _readings(file, image_patterns, record)]
    ids = {reading.id for reading in readings}
    images = []
    by_case: dict[str, dict[str, list[RawFile]]] = {}
    for file, id, channel in readings:
        labeled = {name for name, _ in read_by_pattern(file, label_patterns)}
        if not ids.isdisjoint(labeled - {id}):
            continue
        if channel is None:
            images.append(Image((file,), id))
        else:
            by_case.setdefault(id, {}).setdefault(channel, []).append(file)
    for id, by_channel in by_case.items():
        expected = {
            channel: pattern.replace("{name}", id)
            for channel, pattern in image_patterns.items()
            if channel is not None
        }
        images.append(_join(id, ("", ""), by_channel, expected))
    return images


def images_to_predict(
    paths: Sequence[Path], root: Path, spec: DatasetSpec
) -> tuple[list[Image], list[Path]]:
    """Return the images that a model for `spec` reads, and the files that belong to none.

    The key of an image is the folder of its mask, relative to `root`, and its name. The files of
    channels match the patterns of the description, wherever their folders lie, or are numbered.
    Otherwise a file has all channels.
    """
    files = [RawFile(path, unicodedata.normalize("NFC", path.as_posix())) for path in paths]
    image_patterns = spec.description.image_patterns
    if len(spec.channels) > 1 and None not in image_patterns:
        images = _images_below(files, root, image_patterns)
        if images:
            used = {file for image in images for file in image.files}
            return images, [file.path for file in files if file not in used]

    candidates = [
        Candidate(file, _relative(file.path.parent, root), formats.stem(file.path))
        for file in files
    ]
    names = [channel.name for channel in spec.channels]
    groups = _channels_to_predict(candidates, spec)
    images = [_numbered_image(group, key[1], key, names) for key, group in groups.items()]
    numbered = {image for group in groups.values() for image in group}
    for image in candidates:
        if image not in numbered:
            images.append(Image((image.file,), image.stem, image.key))
    return sorted(images, key=lambda image: image.files[0].name), []


class _Reading(NamedTuple):
    """An image file, and what its name says by a pattern."""

    file: RawFile
    id: str  # of its case
    channel: str | None  # None: all


def _readings(file: RawFile, image_patterns: Patterns, record: FileRecord) -> Iterable[_Reading]:
    """Yield the meaning of a file that matches a pattern of images."""
    if file.skipped:
        return
    file_names = [file.name] if file.dicom is None else [file.name, *file.dicom.names]
    matches = {
        channel: name
        for channel, pattern in image_patterns.items()
        for name in file_names
        if patterns.matches(pattern, name)
    }
    channels = list(matches)
    if not channels:
        return
    if not file.is_image:
        record.left_out[file.path] = UNSUPPORTED
        return
    if len(channels) > 1:
        record.refused[file.path] = (
            f"{printable(file.name)} matches the patterns of several channels: "
            f"{printable(', '.join(map(str, channels)))}; make these patterns more specific"
        )
        return
    channel = channels[0]
    stem = formats.stem(Path(file.name))
    id = next(patterns.match(image_patterns[channel], matches[channel], "name"), stem)
    yield _Reading(file, file.private_id or id, channel)


def _images_below(files: Sequence[RawFile], root: Path, image_patterns: Patterns) -> list[Image]:
    """Return the images of the files that match the last parts of the patterns of channels."""
    by_case: dict[Key, dict[str, list[RawFile]]] = {}
    expected: dict[Key, dict[str, str]] = {}
    local = {name: patterns.local(text) for name, text in image_patterns.items() if name}
    for file in files:
        parts = unicodedata.normalize("NFC", file.path.absolute().as_posix()).split("/")
        for channel, pattern in local.items():
            depth = pattern.count("/") + 1
            name = next(patterns.match(pattern, "/".join(parts[-depth:]), "name"), None)
            if name is None:
                continue
            folder = file.path.absolute().parents[depth - 1]
            key = (_relative(folder, root.absolute()), name)
            by_case.setdefault(key, {}).setdefault(channel, []).append(file)
            expected[key] = {
                channel: (folder / pattern.replace("{name}", name)).as_posix()
                for channel, pattern in local.items()
            }
            break
    return [_join(key[1], key, files, expected[key]) for key, files in by_case.items()]


def _channels_to_predict(
    candidates: Sequence[Candidate], spec: DatasetSpec
) -> dict[Key, list[Candidate]]:
    """Return the numbered files whose numbers are channels, by the names of their cases.

    For a model with several channels, they are if one case has all channels: the others lack some.
    """
    groups = numbered_files(candidates)
    numbers = {key: {channel_number(image) for image in group} for key, group in groups.items()}
    if len(spec.channels) > 1:
        needed = set(range(len(spec.channels)))
        return groups if any(numbers[key] >= needed for key in groups) else {}
    # If the model was trained on the files of channel 0, others are refused.
    if "{name}_0000" not in spec.description.image_patterns.get(None, ""):
        return {}
    return {key: group for key, group in groups.items() if 0 in numbers[key] and len(group) > 1}


def _usual_count(groups: Iterable[Sequence[Candidate]]) -> int:
    """Return the number of channels that most cases have, the larger one if there are as many."""
    counts = Counter(len({channel_number(image) for image in group}) for group in groups)
    return max(counts, key=lambda count: (counts[count], count), default=1)


def _numbered_image(group: Sequence[Candidate], id: str, key: Key, names: Sequence[str]) -> Image:
    """Return the image with the channels `names` whose files in `group` are numbered."""
    by_channel = defaultdict(list)
    for image in sorted(group, key=channel_number):
        number = channel_number(image)
        name = names[number] if number < len(names) else f"channel {number}"
        by_channel[name].append(image.file)
    first = group[0].file.name
    expected = {name: with_channel_number(first, number) for number, name in enumerate(names)}
    return _join(id, key, by_channel, expected)


def _join(
    id: str, key: Key, by_channel: Mapping[str, Sequence[RawFile]], expected: Mapping[str, str]
) -> Image:
    """Return the image with the files of each channel; there should be one.

    `expected` has the name or pattern of the file of every channel, in their order.
    """
    order = [channel for channel in expected if channel in by_channel]
    order += [channel for channel in by_channel if channel not in expected]
    problem = _find_problem(id, {channel: by_channel[channel] for channel in order}, expected)
    files = tuple(file for channel in order for file in by_channel[channel])
    if problem:
        names = tuple(channel for channel in order for _ in by_channel[channel])
        return Image(files, id, key, names, problem)
    return Image(files, id, key, tuple(order) if len(order) > 1 else ())


def _find_problem(
    id: str, by_channel: Mapping[str, Sequence[RawFile]], expected: Mapping[str, str]
) -> str:
    """Return why the files of a case are not one per channel, or ""."""
    case = f"the case {printable(id)}"
    names = printable(", ".join(expected))
    for channel, files in by_channel.items():
        listed = " and ".join(printable(file.name) for file in files[:2])
        if channel not in expected:
            count = pluralize(len(expected), "channel")
            return (
                f"{case} has an additional channel, {listed}; the dataset has {count} ({names}); "
                "remove it, or describe all channels of the dataset"
            )
        if len(files) > 1:
            return f"{case} has several files of {channel_title(channel)}: {listed}; keep one"
    for channel, name in expected.items():
        if channel not in by_channel:
            return (
                f"{case} lacks {channel_title(channel)}: there is no {printable(name)}; "
                "add it, or remove the case"
            )
    return ""


def _relative(folder: Path, root: Path) -> str:
    """Return a folder relative to `root`, or "" if it is not below it."""
    if folder == root or not folder.is_relative_to(root):
        return ""
    return folder.relative_to(root).as_posix()
