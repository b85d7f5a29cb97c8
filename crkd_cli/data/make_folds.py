"""Make the folds of a cross-validation: by patient, with the classes spread over them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crkd_cli.data.folds import FoldParts, Folds
from crkd_cli.data.labels import describe_classes
from crkd_cli.data.make_splits import check_official_parts, find_missing
from crkd_cli.data.splits import (
    OfficialSplits,
    Part,
    Split,
    available_splits,
    has_label,
    held_classes,
    label_key,
    missing_classes,
    official_splits,
    parse_count,
    preview,
    seeded_order,
)
from crkd_cli.data.spreading import ClassSet, draw
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError, UsageError, pluralize
from crkd_cli.text import format_range


@dataclass(frozen=True)
class NewFolds:
    """Folds, and what the user should know about them."""

    folds: Folds
    notes: tuple[str, ...]  # what was chosen, a line each
    missing: tuple[str, ...]  # official groups that the store lacks


class _Pool(NamedTuple):
    """The groups of a dataset before they are divided into folds."""

    train: tuple[str, ...]
    labeled: list[str]  # in seeded order
    val: tuple[str, ...]  # of every fold
    test: tuple[str, ...]
    notes: list[str]


def make_folds(
    store: Store,
    count: int,
    labeled: str | None,
    val: str | None,
    test: str | None,
    seed: int,
    present_only: bool = False,
) -> NewFolds:
    """Divide the labeled groups of a dataset into folds, each of which one model holds out.

    A fold trains on all other groups except the test part, and on the labels of `labeled` of them.
    These are taken from the folds after it, so that the labels of few patients are not used by all
    folds. Public datasets keep their official test and validation parts, and their train part is
    divided. Raises UsageError or CrkdError.

    Args:
        store: The prepared dataset.
        count: Number of folds.
        labeled: How many labels a fold trains with: `4`, `5%` (of the train groups) or `all`; None
            means all. Public datasets need it.
        val: Size of the validation part of a fold, besides its labels: a number, or a share of the
            labeled groups. Not for public datasets that have an official one.
        test: Size of a test part in no fold; not for public datasets.
        seed: Determines the folds.
        present_only: Drop the official groups that the store lacks, instead of raising CrkdError.
    """
    official = official_splits(store.root.name)
    missing: tuple[str, ...] = ()
    if official is None:
        pool = _pool_of_own_data(store, count, test, seed)
    else:
        if labeled is None:
            advice = available_splits(store.root.name, official, ())
            raise UsageError(f"--labeled is missing; {advice}")
        check_official_parts(store.root.name, official, val, test)
        missing = find_missing(store, official, present_only)
        pool = _pool_of_public_data(store, official, seed)
    total = len(pool.labeled)
    if not 2 <= count <= total:
        patients = pluralize(total, "labeled patient")
        advice = f"give a number from 2 to {total}" if total > 1 else "at least 2 are needed"
        raise UsageError(
            f"--folds {count}: {store.root.name} has {patients} to hold out, each by one fold; "
            f"{advice}"
        )
    class_sets = {group: held_classes(store, group) for group in pool.labeled}
    held_out = _divide(pool.labeled, class_sets, count)
    key = label_key(labeled or "all")
    n_val = parse_count(val or "0", total, "--val")
    n_labeled = _count_labeled(pool, max(map(len, held_out)), n_val, key)
    folds = Folds(
        dataset=store.root.name,
        name=f"{key}-folds{count}-seed{seed}{'-present' if missing else ''}",
        train=pool.train,
        folds=tuple(_choose_parts(pool, held_out, class_sets, n_labeled, n_val)),
        test=pool.test,
    )
    notes = (*_describe(folds, key, val), *pool.notes, *_note_missing_classes(folds, store))
    return NewFolds(folds, notes, missing)


def _pool_of_own_data(store: Store, count: int, test: str | None, seed: int) -> _Pool:
    order = seeded_order([group for group in store.groups if has_label(store, group)], seed)
    if not order:
        raise CrkdError(
            f"{store.root}: no case has a label, so nothing can be learned; "
            "add labels and prepare the dataset again"
        )
    n_test = parse_count(test or "0", len(order), "--test")
    class_sets = {group: held_classes(store, group) for group in order}
    test_groups = set(draw(order, class_sets, min(n_test, len(order)), later_parts=count))
    notes = []
    if n_test:
        notes.append(f"test: {pluralize(n_test, 'patient')} in no fold (--test {test})")
    if unlabeled := len(store.groups) - len(order):
        patients = pluralize(unlabeled, "patient")
        notes.append(f"without a label, used as unlabeled in every fold: {patients}")
    return _Pool(
        train=tuple(group for group in store.groups if group not in test_groups),
        labeled=[group for group in order if group not in test_groups],
        val=(),
        test=tuple(sorted(test_groups)),
        notes=notes,
    )


def _pool_of_public_data(store: Store, official: OfficialSplits, seed: int) -> _Pool:
    def present(groups: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(group for group in groups if group in store.groups)

    train, val, test = map(present, (official.train, official.val, official.test))
    notes = [f"test: the {pluralize(len(test), 'official patient')}, in no fold"]
    if val:
        notes.append(f"val: the {pluralize(len(val), 'official patient')}, in every fold")
    order = seeded_order([group for group in train if has_label(store, group)], seed)
    return _Pool(train, order, val, test, notes)


def _divide(
    order: Sequence[str], class_sets: Mapping[str, ClassSet], count: int
) -> list[list[str]]:
    """Divide groups into `count` folds of about the same size, each with its share of classes."""
    rest, folds = list(order), []
    for k in range(count):
        size = len(order) // count + (k < len(order) % count)
        fold = draw(rest, class_sets, size, later_parts=count - 1 - k)
        rest = [group for group in rest if group not in set(fold)]
        folds.append(fold)
    return folds


def _choose_parts(
    pool: _Pool,
    held_out: Sequence[Sequence[str]],
    class_sets: Mapping[str, ClassSet],
    n_labeled: int | None,
    n_val: int,
) -> Iterator[FoldParts]:
    """Yield the parts of the folds that hold out `held_out`; labels of all others if None."""
    for k, own in enumerate(held_out):
        # From the next fold on: with few labels, no two folds train with the same ones.
        others = [group for fold in (*held_out[k + 1 :], *held_out[:k]) for group in fold]
        val = draw(others, class_sets, n_val, later_parts=1)
        rest = [group for group in others if group not in set(val)]
        candidates = draw(rest, class_sets, len(rest))
        yield FoldParts(
            held_out=tuple(sorted(own)),
            labeled=tuple(candidates[:n_labeled]),
            val=tuple(sorted(val)) or pool.val,
        )


def _count_labeled(pool: _Pool, largest: int, n_val: int, key: str) -> int | None:
    """Return how many labels each fold trains with; None: all. Raises UsageError if they are few.

    Args:
        pool: The groups.
        largest: How many groups the largest fold holds out.
        n_val: Groups of the validation part that have labels of the pool.
        key: The label count.
    """
    available = len(pool.labeled) - largest - n_val
    if available < 1:
        raise UsageError(
            f"a fold that holds out {largest} of {pluralize(len(pool.labeled), 'labeled patient')} "
            f"and validates on {n_val} has none to train on; give a smaller --val"
        )
    if key == "all":
        return None
    count = parse_count(key, len(pool.train) - largest - n_val, "--labeled")
    if count > available:
        raise UsageError(
            f"--labeled {key} asks for {pluralize(count, 'labeled patient')} in every fold, but a "
            f"fold that holds out {largest} has {available} of them to train on; give --labeled "
            f"{available} or fewer"
        )
    return count


def _describe(folds: Folds, key: str, val: str | None) -> Iterator[str]:
    """Say what the folds hold out, and what `--labeled` and `--val` mean for them."""
    parts = folds.folds
    sizes = [len(fold.held_out) for fold in parts]
    yield (
        f"{pluralize(sum(sizes), 'labeled patient')} in {len(parts)} folds; each fold holds out "
        f"{format_range(sizes)}, and scores them"
    )
    labels = format_range([len(fold.labeled) for fold in parts])
    others = "" if key == "all" else "; the other patients that it does not hold out are unlabeled"
    noun = "patient" if labels == "1" else "patients"
    yield f"every fold trains with the labels of {labels} {noun} (--labeled {key}){others}"
    if val and any(fold.val for fold in parts):
        yield (
            f"val: {pluralize(len(parts[0].val), 'other labeled patient')} in every fold "
            f"(--val {val})"
        )
    elif not any(fold.val for fold in parts):
        yield (
            "no validation part: the last checkpoint of a fold is its result "
            "(--val takes one from the patients that it does not hold out)"
        )


def _note_missing_classes(folds: Folds, store: Store) -> Iterator[str]:
    """Warn about classes that parts lack. Raises CrkdError if a case of them has no label."""
    held = set().union(*(held_classes(store, group) for group in store.groups))
    consequences: dict[Part, str] = {
        "labeled": "not learned",
        "val": "not used to choose best.pth",
    }
    for part, consequence in consequences.items():
        lacking: dict[str, list[str]] = {}  # names of classes → numbers of folds
        for number, split in enumerate(folds.splits(), start=1):
            if names := _missing(split, store, part, held):
                lacking.setdefault(names, []).append(str(number))
        for names, numbers in lacking.items():
            yield (
                f"warning: in fold {preview(numbers)}, classes that no {part} case contains, so "
                f"{consequence}: {names}"
            )
    if names := _missing(folds.split(1), store, "test", held):
        yield f"warning: classes that no test case contains, so not scored: {names}"


def _missing(split: Split, store: Store, part: Part, held: set[int]) -> str:
    """Name the classes of the dataset that `part` lacks; empty if none or if the part is empty."""
    if not split.groups_of(part):
        return ""
    missing = missing_classes(split, store, part) & held
    return describe_classes([store.spec.classes[k] for k in sorted(missing)]) if missing else ""
