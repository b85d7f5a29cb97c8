"""Make splits: official ones for public datasets, seeded ones by patient for your own data."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from crkd_cli.data.labels import describe_classes
from crkd_cli.data.splits import (
    OfficialSplits,
    Part,
    Split,
    available_splits,
    find_split,
    has_label,
    held_classes,
    label_key,
    missing_classes,
    newest_split,
    official_splits,
    parse_count,
    preview,
    read_split,
    seeded_order,
)
from crkd_cli.data.spreading import draw
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError, UsageError, pluralize

# Shares of the labeled groups, for users' datasets.
DEFAULT_TEST = "20%"
DEFAULT_VAL = "10%"


@dataclass(frozen=True)
class NewSplit:
    """A split, and what the user should know about it."""

    split: Split
    notes: tuple[str, ...]  # what was chosen, a line each
    missing: tuple[str, ...]  # official groups that the store lacks


def make_split(
    store: Store,
    labeled: str | None,
    val: str | None,
    test: str | None,
    seed: int,
    present_only: bool = False,
    keep: str | None = None,
) -> NewSplit:
    """Make the split of a dataset for a label count.

    Public datasets keep their official parts. A label count that is not official draws its groups
    from the official train part, and `val` takes some of the labeled groups. Other
    datasets are divided into test, val and train, with their classes spread over the parts (see
    `spreading.draw`); groups without a label always train. With `keep`, they get the val and test
    part of an earlier split, and newly labeled groups train. Raises UsageError or CrkdError.

    Args:
        store: The prepared dataset.
        labeled: `4`, `5%` (of the train groups) or `all`; None means all. Public datasets need it.
        val: Size of the validation part, as a number or a share of the labeled groups.
        test: Size of the test part, likewise; not for public datasets.
        seed: Determines which groups are drawn.
        present_only: Drop the official groups that the store lacks, instead of raising CrkdError.
        keep: The label count of an earlier split, or its file.
    """
    dataset = store.root.name
    official = official_splits(dataset)
    if keep is not None:
        _check_keep(dataset, official, val, test)
        new = _extend_split(store, keep, labeled, seed)
    elif official is None:
        new = _split_own_data(store, labeled, val or DEFAULT_VAL, test or DEFAULT_TEST, seed)
        new = replace(new, notes=(*new.notes, *_note_leaks(new.split, store)))
    elif labeled is None:
        raise UsageError(f"--labeled is missing; {available_splits(dataset, official, ())}")
    else:
        check_official_parts(dataset, official, val, test)
        new = _split_public(store, official, labeled, val, seed, present_only)
    # Raises CrkdError if a label is missing.
    return replace(new, notes=(*new.notes, *_note_missing_classes(new.split, store)))


def _split_own_data(store: Store, labeled: str | None, val: str, test: str, seed: int) -> NewSplit:
    dataset = store.root.name
    order = seeded_order([group for group in store.groups if has_label(store, group)], seed)
    total = len(order)
    if not order:
        raise CrkdError(
            f"{store.root}: no case has a label, so nothing can be learned; "
            "add labels and prepare the dataset again"
        )
    n_test = parse_count(test, total, "--test")
    n_val = parse_count(val, total, "--val")
    if n_test + n_val >= total:
        raise UsageError(
            f"{dataset} has {pluralize(total, 'labeled patient')}: test {n_test} and val {n_val} "
            "leave none to train on; give smaller --test and --val (0 is allowed)"
        )
    class_sets = {group: held_classes(store, group) for group in order}
    test_groups = draw(order, class_sets, n_test, later_parts=2 if n_val else 1)
    order = [group for group in order if group not in set(test_groups)]
    val_groups = draw(order, class_sets, n_val, later_parts=1)
    order = [group for group in order if group not in set(val_groups)]
    candidates = draw(order, class_sets, len(order))
    held_out = {*test_groups, *val_groups}
    train = tuple(group for group in store.groups if group not in held_out)
    key = label_key(labeled or "all")
    held_out_counts = f"test has {n_test}, val {n_val} of the {total}"
    split = Split(
        dataset=dataset,
        name=f"{key}-seed{seed}",
        train=train,
        labeled=_draw_labeled(dataset, key, candidates, len(train), held_out_counts),
        val=tuple(sorted(val_groups)),
        test=tuple(sorted(test_groups)),
    )
    patients = pluralize(total, "labeled patient")
    notes = [f"{patients}: test {n_test} (--test {test}), val {n_val} (--val {val})"]
    unlabeled = len(store.groups) - total
    if unlabeled:
        notes.append(f"without a label, used as unlabeled: {pluralize(unlabeled, 'patient')}")
    return NewSplit(split, tuple(notes), missing=())


def _extend_split(store: Store, keep: str, labeled: str | None, seed: int) -> NewSplit:
    """Make a split with the val and test part of another, where all other groups train.

    The labeled groups are those of the other split, and then others in seeded order.
    """
    is_file = Path(keep).suffix in (".yaml", ".yml")
    old = find_split(store, None, Path(keep)) if is_file else find_split(store, keep)
    held_out = {*old.val, *old.test}
    train = tuple(group for group in store.groups if group not in held_out)
    with_label = [group for group in train if has_label(store, group)]
    before = [group for group in old.labeled if group in with_label]
    added = [group for group in seeded_order(with_label, seed) if group not in before]
    key = label_key(labeled or "all")
    reason = f"test has {len(old.test)}, val {len(old.val)}"
    split = Split(
        dataset=store.root.name,
        name=f"{key}-extends-{old.name.rpartition('-extends-')[2]}",
        train=train,
        labeled=_draw_labeled(store.root.name, key, [*before, *added], len(train), reason),
        val=old.val,
        test=old.test,
    )
    notes = [f"val and test are those of split {old.name}"]
    new = [group for group in split.labeled if group not in old.labeled]
    if new:
        notes.append(f"{len(new)} more with labels train: {preview(sorted(new), 10)}")
    return NewSplit(split, tuple(notes), missing=())


def _note_leaks(split: Split, store: Store) -> Iterator[str]:
    """Warn if labeled groups were test groups of the split that was made last."""
    file = newest_split(store.root)
    if file is None:
        return
    try:
        old = read_split(file)
    except UsageError:
        return  # it is reported where it is used
    leaked = [group for group in split.labeled if group in old.test]
    if leaked:
        yield (
            f"warning: {pluralize(len(leaked), 'test patient')} of split {old.name} "
            f"{'trains' if len(leaked) == 1 else 'train'} in this one, so their scores cannot be "
            f"compared: {preview(leaked)}; --keep {file.stem} keeps val and test as they were"
        )


def _note_missing_classes(split: Split, store: Store) -> Iterator[str]:
    """Warn about classes that a part lacks. Raises CrkdError if a case of it has no label."""
    consequences: dict[Part, str] = {
        "labeled": "not learned",
        "val": "not used to choose best.pth",
        "test": "not scored",
    }
    held = set().union(*(held_classes(store, group) for group in store.groups))
    for part, consequence in consequences.items():
        missing = missing_classes(split, store, part)
        if missing & held and split.groups_of(part):
            names = describe_classes([store.spec.classes[k] for k in sorted(missing & held)])
            yield f"warning: classes that no {part} case contains, so {consequence}: {names}"
    if unseen := set(range(1, len(store.spec.classes))) - held:
        names = describe_classes([store.spec.classes[k] for k in sorted(unseen)])
        yield f"warning: classes that no case contains: {names}"


def _check_keep(
    dataset: str, official: OfficialSplits | None, val: str | None, test: str | None
) -> None:
    """Raise UsageError if val and test are given or official, and so cannot be kept."""
    if official is not None:
        raise UsageError(f"the val and test part of {dataset} are official; drop --keep")
    for option, size in (("--val", val), ("--test", test)):
        if size is not None:
            raise UsageError(f"--keep keeps val and test; drop {option}")


def check_official_parts(
    dataset: str, official: OfficialSplits, val: str | None, test: str | None
) -> None:
    """Raise UsageError if a size is given for a part that the official split determines."""
    if test is not None:
        raise UsageError(f"{dataset} has {len(official.test)} official test cases; drop --test")
    if val is not None and official.val:
        raise UsageError(f"{dataset} has {len(official.val)} official validation cases; drop --val")


def _split_public(
    store: Store,
    official: OfficialSplits,
    labeled: str,
    val: str | None,
    seed: int,
    present_only: bool,
) -> NewSplit:
    key = label_key(labeled)
    missing = find_missing(store, official, present_only)
    split = Split(
        dataset=store.root.name,
        name=f"official-{key}" if key in official.labeled else f"{key}-seed{seed}",
        train=_present(store, official.train),
        labeled=_labeled_groups(store, official, key, seed),
        val=_present(store, official.val),
        test=_present(store, official.test),
    )
    notes = []
    if val is not None:
        total = len(split.labeled)
        split = _take_validation(split, parse_count(val, total, "--val"), seed)
        notes.append(f"val: {len(split.val)} of the {total} labeled cases (--val {val})")
    elif not official.val:
        notes.append(
            "no validation part: the last checkpoint is the result "
            "(--val takes one from the labeled cases)"
        )
    if missing:
        split = msgspec.structs.replace(split, name=f"{split.name}-present")
    return NewSplit(split, tuple(notes), missing)


def find_missing(store: Store, official: OfficialSplits, present_only: bool) -> tuple[str, ...]:
    """Return the official groups that the store lacks.

    Raises CrkdError if there are some, unless `present_only`.
    """
    missing = tuple(group for group in official.groups if group not in store.groups)
    if missing and not present_only:
        raise CrkdError(
            f"{store.root} lacks {len(missing)} of the {len(official.groups)} cases of the "
            f"official split: {preview(missing)}; prepare the complete dataset, or add "
            "--present-only"
        )
    return missing


def _labeled_groups(store: Store, official: OfficialSplits, key: str, seed: int) -> tuple[str, ...]:
    """Return the official labeled groups for a label count, or draw them from the train part."""
    if key not in official.labeled:
        train = _present(store, official.train)
        candidates = seeded_order([group for group in train if has_label(store, group)], seed)
        return _draw_labeled(store.root.name, key, candidates, len(train))
    groups = _present(store, official.labeled[key])
    if not groups:
        raise CrkdError(
            f"{store.root} has none of the labeled cases of official-{key}: "
            f"{preview(official.labeled[key])}"
        )
    return groups


def _draw_labeled(
    dataset: str, key: str, candidates: list[str], n_train: int, held_out: str = ""
) -> tuple[str, ...]:
    """Return the first candidates for a label count, which is a share of the train groups.

    Raises UsageError if there are too few, with `held_out` as the reason why.
    """
    available = len(candidates)
    count = available if key == "all" else parse_count(key, n_train, "--labeled")
    if count > available:
        reason, advice = "", ""
        if held_out:
            reason = f" ({held_out})"
            advice = ", or smaller --test and --val (0 is allowed)"
        raise UsageError(
            f"--labeled {key} asks for {count} labeled patients, but {dataset} has {available} of "
            f"them to train on{reason}; give --labeled {available} or fewer{advice}"
        )
    return tuple(candidates[:count])


def _take_validation(split: Split, count: int, seed: int) -> Split:
    """Move `count` labeled groups of a split to its validation part."""
    if count >= len(split.labeled):
        raise UsageError(
            f"--val takes {count} of the {len(split.labeled)} labeled cases and leaves none to "
            "train on; give a smaller --val or a larger --labeled"
        )
    val = set(seeded_order(split.labeled, seed)[:count])
    return msgspec.structs.replace(
        split,
        name=f"{split.name}-val{count}",
        train=tuple(group for group in split.train if group not in val),
        labeled=tuple(group for group in split.labeled if group not in val),
        val=tuple(group for group in split.labeled if group in val),
    )


def _present(store: Store, groups: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(group for group in groups if group in store.groups)
