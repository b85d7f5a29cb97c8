"""Making splits: the official division of a public data set, or a seeded one by patient of a user's own data."""

from dataclasses import dataclass

import msgspec

from crkd_cli.data.splits import (
    OfficialSplits,
    Split,
    available_splits,
    label_key,
    official_splits,
    parse_count,
    preview,
    seeded_order,
)
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError, UsageError

TEST, VAL = "20%", "10%"  # of the labeled groups, where no official split says


@dataclass(frozen=True)
class NewSplit:
    """A split, what was chosen on the way (one line each) and the official groups that the store lacks."""

    split: Split
    notes: tuple[str, ...]
    missing: tuple[str, ...]


def make_split(
    store: Store,
    labeled: str | None,
    val: str | None,
    test: str | None,
    seed: int,
    present_only: bool = False,
) -> NewSplit:
    """The split of `store` for a label count (`4`, `5%` of the train groups, `all`; None: all, own data only).

    Public sets keep their official parts; a label count that is not official draws its groups from the official train
    part, and `val` is carved from the labeled groups. Own data are divided into test, val and train; groups without
    a label always train. Raises UsageError or CrkdError.
    """
    facts = official_splits(store.root.name)
    made = (
        _own(store, labeled, val, test, seed)
        if facts is None
        else _public(store, facts, labeled, val, test, seed, present_only)
    )
    for part in ("labeled", "val", "test"):
        made.split.cases(store, part)  # raises where a label is missing
    return made


def _own(
    store: Store, labeled: str | None, val: str | None, test: str | None, seed: int
) -> NewSplit:
    order = seeded_order((group for group in store.groups if _labeled(store, group)), seed)
    if not order:
        raise CrkdError(
            f"{store.root}: no case has a label, so nothing can be learned; add labels and prepare again"
        )
    n_test = parse_count(test or TEST, len(order), "--test")
    n_val = parse_count(val or VAL, len(order), "--val")
    held, rest = order[: n_test + n_val], order[n_test + n_val :]
    if not rest:
        raise UsageError(
            f"{store.root.name} has {len(order)} labeled patients: test {n_test} and val {n_val} leave none to train on; "
            "give smaller --test and --val (0 is allowed)"
        )
    train = tuple(group for group in store.groups if group not in set(held))
    key = label_key(labeled or "all")
    notes = [
        f"{len(order)} labeled patients: test {n_test} (--test {test or TEST}), val {n_val} (--val {val or VAL})"
    ]
    if bare := len(store.groups) - len(order):
        notes.append(f"{bare} patients without a label train as unlabeled")
    split = Split(
        dataset=store.root.name,
        name=f"{key}-seed{seed}",
        train=train,
        labeled=_draw(
            rest,
            train,
            key,
            store.root.name,
            f" (test has {n_test}, val {n_val} of the {len(order)})",
        ),
        val=tuple(sorted(held[n_test:])),
        test=tuple(sorted(held[:n_test])),
    )
    return NewSplit(split, tuple(notes), ())


def _public(
    store: Store,
    facts: OfficialSplits,
    labeled: str | None,
    val: str | None,
    test: str | None,
    seed: int,
    present_only: bool,
) -> NewSplit:
    dataset = store.root.name
    if labeled is None:
        raise UsageError(f"--labeled is missing; {available_splits(dataset, facts, ())}")
    if test is not None:
        raise UsageError(f"{dataset} has {len(facts.test)} official test cases; leave out --test")
    if val is not None and facts.val:
        raise UsageError(
            f"{dataset} has {len(facts.val)} official validation cases; leave out --val"
        )
    key = label_key(labeled)
    everything = [*facts.train, *facts.val, *facts.test]
    missing = tuple(group for group in everything if group not in store.groups)
    if missing and not present_only:
        raise CrkdError(
            f"{store.root} lacks {len(missing)} of the {len(everything)} cases of the official split: {preview(missing)}; "
            "prepare the whole data set, or add --present-only"
        )
    here = OfficialSplits(
        train=_present(store, facts.train),
        labeled=facts.labeled,
        val=_present(store, facts.val),
        test=_present(store, facts.test),
    )
    if key in facts.labeled:
        chosen, name = _present(store, facts.labeled[key]), f"official-{key}"
        if not chosen:
            raise CrkdError(
                f"{store.root} has none of the labeled cases of {name}: {preview(facts.labeled[key])}"
            )
    else:
        able = [group for group in here.train if _labeled(store, group)]
        chosen, name = (
            _draw(seeded_order(able, seed), here.train, key, dataset),
            f"{key}-seed{seed}",
        )
    split = Split(
        dataset=dataset, name=name, train=here.train, labeled=chosen, val=here.val, test=here.test
    )
    notes = [
        "no validation part: the last checkpoint is the result (--val carves one from the labeled cases)"
    ]
    if val is not None:
        split = _carve(split, parse_count(val, len(chosen), "--val"), seed)
        notes = [f"val: {len(split.val)} of the {len(chosen)} labeled cases (--val {val})"]
    if missing:
        split = msgspec.structs.replace(split, name=f"{split.name}-present")
    return NewSplit(split, () if facts.val else tuple(notes), missing)


def _carve(split: Split, count: int, seed: int) -> Split:
    """`split` with `count` of its labeled groups as validation part instead."""
    if count >= len(split.labeled):
        raise UsageError(
            f"--val takes {count} of the {len(split.labeled)} labeled cases and leaves none to train on; "
            "give a smaller --val or a larger --labeled"
        )
    val = set(seeded_order(split.labeled, seed)[:count])
    return msgspec.structs.replace(
        split,
        name=f"{split.name}-val{count}",
        train=tuple(group for group in split.train if group not in val),
        labeled=tuple(group for group in split.labeled if group not in val),
        val=tuple(group for group in split.labeled if group in val),
    )


def _draw(
    able: list[str], train: tuple[str, ...], key: str, dataset: str, others: str = ""
) -> tuple[str, ...]:
    """The first of the groups that can be labeled, as many as `key` says of the train groups; `others`: where the rest is."""
    count = len(able) if key == "all" else parse_count(key, len(train), "--labeled")
    if count > len(able):
        raise UsageError(
            f"--labeled {key} asks for {count} labeled patients, but {dataset} has {len(able)} of them to train on{others}; "
            f"give --labeled {len(able)} or fewer{', or smaller --test and --val (0 is allowed)' if others else ''}"
        )
    return tuple(able[:count])


def _labeled(store: Store, group: str) -> bool:
    return any(case.labeled for case in store.groups[group])


def _present(store: Store, groups: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(group for group in groups if group in store.groups)
