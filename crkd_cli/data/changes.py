"""How a prepared dataset differs from what it was when a model was trained, or before."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from crkd_cli.data.plan import Plan
from crkd_cli.data.splits import preview
from crkd_cli.data.store import CaseInfo, ChannelInfo, DatasetSpec, Store, Window, digest
from crkd_cli.errors import CrkdError, pluralize
from crkd_cli.text import channel_title, printable

# What is compared for every case, as named in messages.
FACTS = ("image", "label", "spacing", "patient")
DIGITS = 8  # hexadecimal, kept of each digest
MAX_NAMES = 10  # of new cases, in a message
GRID = ("orientation", "spacing")  # the parts of a plan that stored volumes depend on
Fingerprints = Mapping[str, tuple[str, ...]]


def describe_other_kind(before: DatasetSpec, now: DatasetSpec) -> str:
    """Describe the first property in which datasets differ besides classes; empty if none does."""
    facts = compare_kinds(before, now)
    different = (f"{what} was {old}, now {new}" for what, old, new in facts if old != new)
    return next(different, "")


def compare_kinds(before: DatasetSpec, now: DatasetSpec) -> Iterator[tuple[str, object, object]]:
    """Yield (what, before, now) for the properties in which datasets may differ besides classes."""
    yield "the source", before.source, now.source
    yield "the number of axes", before.dims, now.dims
    yield from _compare_channels(before.channels, now.channels)
    yield "the stored size", before.stored_size, now.stored_size
    yield "whether z is the last axis", before.z_last, now.z_last
    yield from _compare_grids(before.plan, now.plan)


def fingerprints(store: Store) -> dict[str, tuple[str, ...]]:
    """Return short digests of the FACTS of every case."""
    result = {}
    for case in store.index.cases:
        facts = ((case.sha256, case.shape), case.label_sha256, case.spacing_mm, case.group)
        result[case.id] = tuple(digest([(fact,)])[:DIGITS] for fact in facts)
    return result


def describe_changes(before: Fingerprints, store: Store) -> str:
    """Count what differs: "1 case is missing, 2 labels differ"; empty if nothing does."""
    now = fingerprints(store)
    missing, new = len(before.keys() - now.keys()), len(now.keys() - before.keys())
    parts = []
    for count, state in ((missing, "missing"), (new, "new")):
        if count:
            verb = "is" if count == 1 else "are"
            parts.append(f"{pluralize(count, 'case')} {verb} {state}")
    common = before.keys() & now.keys()
    for number, fact in enumerate(FACTS):
        count = sum(before[case][number] != now[case][number] for case in common)
        if count:
            verb = "differs" if count == 1 else "differ"
            parts.append(f"{pluralize(count, fact)} {verb}")
    return ", ".join(parts)


class NewContent(NamedTuple):
    """The names of the cases that a new preparation of a dataset added, changed and removed."""

    new_labels: tuple[str, ...] = ()  # of images that had none
    new_images: tuple[str, ...] = ()  # with or without a label
    changed_labels: tuple[str, ...] = ()
    changed_images: tuple[str, ...] = ()
    removed_labels: tuple[str, ...] = ()  # of images that are still there
    removed_images: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return "3 new labels: a, b, c; 1 new image: d", or "" if nothing differs."""
        parts = []
        for field, names in self._asdict().items():
            state, noun = field.split("_")
            if names:
                count = pluralize(len(names), f"{state} {noun.removesuffix('s')}")
                parts.append(f"{count}: {preview(names, MAX_NAMES)}")
        return "; ".join(parts)


def find_new_content(root: Path, cases: Iterable[CaseInfo]) -> NewContent:
    """Compare new `cases` with those of the store in `root`, if there is one that can be read."""
    try:
        old = Store(root).cases
    except CrkdError:
        return NewContent()
    new = {case.id: case for case in cases}
    both = [(old[name], case) for name, case in new.items() if name in old]
    labeled = [(was, case) for was, case in both if was.labeled and case.labeled]
    return NewContent(
        new_labels=tuple(case.id for was, case in both if case.labeled and not was.labeled),
        new_images=tuple(name for name in new if name not in old),
        changed_labels=tuple(x.id for was, x in labeled if x.label_sha256 != was.label_sha256),
        changed_images=tuple(case.id for was, case in both if case.sha256 != was.sha256),
        removed_labels=tuple(case.id for was, case in both if was.labeled and not case.labeled),
        removed_images=tuple(name for name in old if name not in new),
    )


def _compare_channels(
    before: Sequence[ChannelInfo], now: Sequence[ChannelInfo]
) -> Iterator[tuple[str, str, str]]:
    """Yield (what, before, now) for what the channels of two datasets have."""
    channels = "the channel" if len(before) == len(now) == 1 else "the list of channels"
    yield channels, _names(before), _names(now)
    for was, info in zip(before, now, strict=False):
        name = channel_title(info.name)
        yield f"the modality of {name}", was.modality, info.modality
        yield f"the normalization of {name}", was.intensity, info.intensity
        yield f"the window of {name}", _describe(was.window), _describe(info.window)


def _names(channels: Sequence[ChannelInfo]) -> str:
    return printable(", ".join(channel.name for channel in channels))


def _describe(window: Window | None) -> str:
    if window is None:
        return "none"
    return (
        f"{window.low:.6g} … {window.high:.6g} (mean {window.mean:.6g}, standard deviation "
        f"{window.std:.6g})"
    )


def _compare_grids(before: Plan | None, now: Plan | None) -> Iterator[tuple[str, object, object]]:
    """Yield (what, before, now) for the grids of two plans.

    The other parts say how to train, which the configuration of a run states itself.
    """
    if before is None or now is None:
        names = {True: "as published", False: "planned"}
        yield "the grid", names[before is None], names[now is None]
        return
    for name in GRID:
        yield f"plan.{name}", getattr(before, name), getattr(now, name)
