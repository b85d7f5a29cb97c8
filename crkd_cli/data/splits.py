"""Splits: which patients train, which of those are labeled, which validate and which test.

splits/NAME.yaml                    the official split of a public dataset, part of the package
prepared/NAME/splits/LABELED.yaml   made last by `make-splits` for this label count; used first
prepared/NAME/splits/folds/LABELED.yaml   by `make-splits --folds`; see `crkd_cli.data.folds`

A split names groups (patients), never slices, so it applies to every layout of a dataset. Groups
are chosen in the order of sha256("seed:group"): the same seed gives the same split on every
platform and with every library version, and a larger label count includes a smaller one.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from crkd_cli.config import Strict, parse
from crkd_cli.data.store import CaseInfo, Store
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.paths import atomic_write, packaged_folder
from crkd_cli.text import shorten
from crkd_cli.yaml_text import load_yaml

Part = Literal["labeled", "unlabeled", "val", "test", "fold"]
COUNT = re.compile(r"[0-9]{1,9}|[0-9]{1,9}(\.[0-9]{1,9})?%")


class Fold(Strict, frozen=True):
    """One fold of a cross-validation: the groups that its model is scored on."""

    number: int  # 1 … count
    count: int
    held_out: tuple[str, ...]


class Split(Strict, frozen=True):
    """Groups by part: train, val, test and fold are disjoint; labeled is a subset of train."""

    dataset: str
    name: str  # for people: official-4, 4-seed1337 …
    train: tuple[str, ...]
    labeled: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    fold: Fold | None = None

    def __post_init__(self) -> None:
        parts, held_out = "train, val and test", self.groups_of("fold")
        if self.fold:
            parts = f"train, val, test and what fold {self.fold.number} holds out"
        counts = Counter([*self.train, *self.val, *self.test, *held_out])
        duplicates = [group for group, count in counts.items() if count > 1]
        if duplicates:
            raise ValueError(
                f"{parts} must be disjoint, but these occur more than once: {preview(duplicates)}"
            )
        outside = set(self.labeled) - set(self.train)
        if outside:
            raise ValueError(
                f"labeled must be a subset of train, but train lacks: {preview(sorted(outside))}"
            )
        if len(set(self.labeled)) < len(self.labeled):
            raise ValueError("labeled contains a group more than once")
        if not self.labeled:
            raise ValueError("labeled is empty: at least one labeled group is needed")

    @property
    def unlabeled(self) -> tuple[str, ...]:
        """The groups of train that are not labeled, in the order of train."""
        labeled = set(self.labeled)
        return tuple(group for group in self.train if group not in labeled)

    @property
    def title(self) -> str:
        """The name, and which fold it is."""
        fold = self.fold
        return f"{self.name}, fold {fold.number} of {fold.count}" if fold else self.name

    def groups_of(self, part: Part) -> tuple[str, ...]:
        """Return the groups of `part`."""
        if part == "fold":
            return self.fold.held_out if self.fold else ()
        groups: tuple[str, ...] = getattr(self, part)
        return groups

    def cases(self, store: Store, part: Part) -> list[str]:
        """Return the case ids of `part`, in the order of the split.

        For unlabeled: all cases of the unlabeled groups, and those of the labeled groups that have
        no label. For the other parts: the cases that have a label. Raises CrkdError if the store
        lacks a group or its labels.
        """
        groups = self.train if part == "unlabeled" else self.groups_of(part)
        self._check_groups(store, part, groups)
        cases = [case for group in groups for case in store.groups[group]]
        if part == "unlabeled":
            labeled = set(self.labeled)
            return [case.id for case in cases if case.group not in labeled or not case.labeled]
        return [case.id for case in cases if case.labeled]

    def _check_groups(self, store: Store, part: Part, groups: Sequence[str]) -> None:
        missing = [group for group in groups if group not in store.groups]
        if missing:
            raise CrkdError(
                f"{store.root} lacks {len(missing)} of the {len(groups)} {part} cases of split "
                f"{self.name}: {preview(missing)}; prepare the complete dataset, or use what "
                f"exists: crkd make-splits {self.dataset} --present-only"
            )
        if part == "unlabeled":
            return
        unlabeled = [group for group in groups if not has_label(store, group)]
        if unlabeled:
            raise CrkdError(
                f"{store.root}: the {part} cases of split {self.name} have no label: "
                f"{preview(unlabeled)}"
            )


class OfficialSplits(Strict, frozen=True):
    """The content of splits/NAME.yaml: the parts, and the labeled groups of each label count."""

    train: tuple[str, ...]
    labeled: dict[str, tuple[str, ...]]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of all parts."""
        return (*self.train, *self.val, *self.test)

    def split(self, dataset: str, key: str) -> Split:
        """Return the official split for the label count `key`."""
        return Split(
            dataset=dataset,
            name=f"official-{key}",
            train=self.train,
            labeled=self.labeled[key],
            val=self.val,
            test=self.test,
        )


def find_split(store: Store, labeled: str | None, file: Path | None = None) -> Split:
    """Return the split to train with.

    This is `file`, else the split made last for the label count `labeled`, else the official one.
    Without `labeled`, it is the only split that was made. Raises UsageError, which says which
    splits exist and how to make another.
    """
    if file is not None:
        return _split_from_file(store, labeled, file)
    dataset = store.root.name
    made = {path.stem: path for path in sorted((store.root / "splits").glob("*.yaml"))}
    official = official_splits(dataset)
    if labeled is None:
        if len(made) != 1:
            alternatives = available_splits(dataset, official, made)
            raise UsageError(f"--labeled is missing; {alternatives}")
        return read_split(next(iter(made.values())))
    key = label_key(labeled)
    if key in made:
        return read_split(made[key])
    if official is None or key not in official.labeled:
        alternatives = available_splits(dataset, official, made, key)
        raise UsageError(f"no split of {dataset} with --labeled {key} exists; {alternatives}")
    return official.split(dataset, key)


def split_file(store: Store, labeled: str) -> Path:
    """Return where the split for this label count is kept; a new one replaces it."""
    return store.root / "splits" / f"{label_key(labeled)}.yaml"


def newest_split(root: Path) -> Path | None:
    """Return the file of the split that was made last for the store in `root`, if there is one."""
    files = (root / "splits").glob("*.yaml")
    return max(files, key=lambda file: (file.stat().st_mtime_ns, file.name), default=None)


def read_split(file: Path) -> Split:
    """Read a split file. Raises UsageError, which names the file and what is wrong."""
    tree = read_tree(file)
    if "folds" in tree:
        raise UsageError(
            f"{file} has the folds of a cross-validation; add --folds, or --fold N for one of them"
        )
    if not {"train", "labeled"} <= tree.keys():
        raise UsageError(
            f"{file} is not a split: expected dataset, name, train, labeled, val and test"
        )
    split: Split = parse(tree, Split, str(file))
    return split


def write_split(split: Split, file: Path) -> None:
    """Write a split file. Raises CrkdError if this is impossible."""
    tree = msgspec.to_builtins(split)
    del tree["fold"]  # files of folds are others: see `crkd_cli.data.folds`
    write_tree(tree, file)


def write_tree(tree: dict[str, Any], file: Path) -> None:
    """Write the content of a file of splits. Raises CrkdError if this is impossible."""
    text = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120)
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def official_splits(dataset: str) -> OfficialSplits | None:
    """Return the official splits of a public dataset, or None for phantoms and own data.

    ISIC 2018 and Kvasir-SEG have only two parts. Published tables report on the second one, `val`:
    it is the test part here, so that no checkpoint is selected on the cases that are then scored.
    """
    file = packaged_folder("splits") / f"{dataset}.yaml"
    if not file.is_file():
        return None
    tree = read_tree(file)
    tree["labeled"] = {str(key): groups for key, groups in tree["labeled"].items()}
    official: OfficialSplits = parse(tree, OfficialSplits, str(file))
    if not official.test:
        return msgspec.structs.replace(official, val=(), test=official.val)
    return official


def available_splits(
    dataset: str, official: OfficialSplits | None, made: Iterable[str], key: str = "N"
) -> str:
    """Return the end of an error message: which splits exist, and how to make another."""
    parts = []
    if official:
        parts.append(f"official: {', '.join(official.labeled)}")
    if made:
        parts.append(f"made: {', '.join(made)}")
    parts.append(f"make another with: crkd make-splits {dataset} --labeled {key}")
    return "; ".join(parts)


def label_key(labeled: str) -> str:
    """Return a label count in its canonical form: `4`, `5%` or `all`. Raises UsageError."""
    text = labeled.strip().lower()
    if text == "all":
        return text
    if not COUNT.fullmatch(text) or float(text.rstrip("%")) == 0:
        raise UsageError(
            f"--labeled {shorten(labeled)!r}: expected a number such as 4, a share such as 5%, or "
            "all"
        )
    if not text.endswith("%"):
        return str(int(text))
    return f"{_share(text, labeled, '--labeled'):g}%"


def parse_count(text: str, total: int, option: str) -> int:
    """Parse a number, or a share of `total` such as 10%.

    Shares are rounded half up, and to at least one unless they are 0%. Raises UsageError, which
    names the `option`.
    """
    stripped = text.strip()
    if not COUNT.fullmatch(stripped):
        raise UsageError(
            f"{option} {shorten(text)!r}: expected a number such as 4 or a share such as 10%"
        )
    if not stripped.endswith("%"):
        return int(stripped)
    share = _share(stripped, text, option)
    return max(int(total * share / 100 + 0.5), 1) if share else 0


def _share(stripped: str, text: str, option: str) -> float:
    share = float(stripped[:-1])
    if share > 100:
        raise UsageError(f"{option} {text!r}: a share is at most 100%")
    return share


def seeded_order(groups: Iterable[str], seed: int) -> list[str]:
    """Order `groups` by a hash of the seed and their names."""
    return sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())


def has_label(store: Store, group: str) -> bool:
    """Tell whether a case of the group has a label."""
    return any(case.labeled for case in store.groups[group])


def held_classes(store: Store, group: str) -> frozenset[int]:
    """Return the foreground classes in the labeled cases of a group, and 0 if a case has none."""
    held: set[int] = set()
    for case in store.groups[group]:
        if case.labeled:
            held.update(_foreground_classes(case) or {0})
    return frozenset(held)


def missing_classes(split: Split, store: Store, part: Part) -> set[int]:
    """Return the foreground classes that no case of `part` contains."""
    present: set[int] = set()
    for case in split.cases(store, part):
        present.update(_foreground_classes(store.cases[case]))
    return set(range(1, len(store.spec.classes))) - present


def preview(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names, and the number of the others."""
    text = ", ".join(names[:limit])
    others = len(names) - limit
    return f"{text} and {others} more" if others > 0 else text


def _foreground_classes(case: CaseInfo) -> set[int]:
    return {number for number, size in enumerate(case.class_sizes) if number and size}


def _split_from_file(store: Store, labeled: str | None, file: Path) -> Split:
    check_alone(labeled)
    split = read_split(file)
    check_dataset(split.dataset, store, file)
    return split


def check_alone(labeled: str | None) -> None:
    """Raise UsageError if --labeled is given besides --split."""
    if labeled is not None:
        raise UsageError("--labeled and --split both choose the labeled cases; drop one of them")


def check_dataset(named: str, store: Store, file: Path) -> None:
    """Raise UsageError if a file of splits names another dataset than `store`."""
    if named != store.root.name:
        raise UsageError(
            f"{file} is a split of {named}, not of {store.root.name}; "
            "give a split of this dataset to --split"
        )


def read_tree(file: Path) -> dict[str, Any]:
    """Read the content of a file of splits. Raises UsageError if it cannot be read."""
    try:
        tree = load_yaml(file)
    except OSError as error:
        raise UsageError(f"cannot read the split {file}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"{file} is not valid YAML: {error}") from None
    return tree if isinstance(tree, dict) else {}
