"""Splits: which patients train, which of those are labeled, which validate and test. Always by group, never by slice.

splits/NAME.yaml                     the official facts of a public data set, packaged with the program
prepared/NAME/splits/LABELED.yaml    what `make-splits` wrote last for that label count: goes before the official one

A split names groups (patients), so it holds for every layout of the same data set. Choices are made by ordering
sha256("seed:group"): the same seed gives the same split on every platform and library version, and a smaller label
count is contained in a larger one.
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
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.paths import atomic_write, packaged_folder

Part = Literal["labeled", "unlabeled", "val", "test"]


class Split(Strict, frozen=True):
    """Groups (patients) by part. train, val and test are disjoint; labeled is a part of train."""

    dataset: str
    name: str  # for people: official-4, 4-seed1337 …
    train: tuple[str, ...]
    labeled: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        times = Counter([*self.train, *self.val, *self.test])
        if twice := [group for group, count in times.items() if count > 1]:
            raise ValueError(
                f"train, val and test must be disjoint, but hold more than once: {preview(twice)}"
            )
        if outside := set(self.labeled) - set(self.train):
            raise ValueError(
                f"labeled must be a part of train, but train lacks: {preview(sorted(outside))}"
            )
        if len(set(self.labeled)) < len(self.labeled):
            raise ValueError("labeled names a group more than once")
        if not self.labeled:
            raise ValueError("labeled is empty: at least one labeled group is needed")

    @property
    def unlabeled(self) -> tuple[str, ...]:
        """train without labeled, in train's order."""
        labeled = set(self.labeled)
        return tuple(group for group in self.train if group not in labeled)

    def cases(self, store: Store, part: Part) -> list[str]:
        """Case ids of `part`, in the split's order. Raises CrkdError if the store lacks one of its groups.

        labeled, val and test: the cases that have a label. unlabeled: every case of the unlabeled groups, and those
        of the labeled groups that have no label.
        """
        groups: tuple[str, ...] = self.train if part == "unlabeled" else getattr(self, part)
        if lost := [group for group in groups if group not in store.groups]:
            raise CrkdError(
                f"{store.root} lacks {len(lost)} of the {len(groups)} {part} cases of split {self.name}: {preview(lost)}; "
                f"prepare the whole data set, or keep what is there: crkd make-splits {self.dataset} --present-only"
            )
        if part == "unlabeled":
            labeled = set(self.labeled)
            cases = [case for group in groups for case in store.groups[group]]
            return [case.id for case in cases if case.group not in labeled or not case.labeled]
        ids = [case.id for group in groups for case in store.groups[group] if case.labeled]
        if bare := [
            group for group in groups if not any(case.labeled for case in store.groups[group])
        ]:
            raise CrkdError(
                f"{store.root}: the {part} cases of split {self.name} have no label: {preview(bare)}"
            )
        return ids


def find_split(store: Store, labeled: str | None, file: Path | None = None) -> Split:
    """The split to train with: `file`, else the one last made for this label count, else the official one.

    Without `labeled` the only split that was made is taken. Raises UsageError that says what exists and what to run.
    """
    dataset = store.root.name
    if file is not None:
        if labeled is not None:
            raise UsageError(
                "--labeled and --split name the labeled cases twice; leave one of them out"
            )
        split = read_split(file)
        if split.dataset != dataset:
            raise UsageError(
                f"{file} is a split of {split.dataset}, not of {dataset}; give one of it to --split"
            )
        return split
    made = {path.stem: path for path in sorted((store.root / "splits").glob("*.yaml"))}
    facts = official_splits(dataset)
    if labeled is None:
        if len(made) != 1:
            raise UsageError(f"--labeled is missing; {available_splits(dataset, facts, made)}")
        return read_split(next(iter(made.values())))
    key = label_key(labeled)
    if key in made:
        return read_split(made[key])
    if facts is None or key not in facts.labeled:
        raise UsageError(
            f"no split of {dataset} with --labeled {key} exists; {available_splits(dataset, facts, made, key)}"
        )
    return facts.split(dataset, key)


def split_file(store: Store, labeled: str) -> Path:
    """Where the split for this label count is kept; the last one made replaces the one before."""
    return store.root / "splits" / f"{label_key(labeled)}.yaml"


def read_split(file: Path) -> Split:
    """A split file. Raises UsageError that names the file and what is wrong."""
    split: Split = parse(_yaml(file), Split, str(file))
    return split


def write_split(split: Split, file: Path) -> None:
    with atomic_write(file) as temporary:
        text = yaml.safe_dump(
            msgspec.to_builtins(split), sort_keys=False, default_flow_style=None, width=120
        )
        temporary.write_text(text, encoding="utf-8")


class OfficialSplits(Strict, frozen=True):
    """splits/NAME.yaml: one division into parts and the labeled groups of every published label count."""

    train: tuple[str, ...]
    labeled: dict[str, tuple[str, ...]]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def split(self, dataset: str, key: str) -> Split:
        return Split(
            dataset=dataset,
            name=f"official-{key}",
            train=self.train,
            labeled=self.labeled[key],
            val=self.val,
            test=self.test,
        )


def official_splits(dataset: str) -> OfficialSplits | None:
    """The official facts of a public data set, None for phantoms and a user's own data.

    ISIC 2018 and Kvasir-SEG have two parts only. The second, `val`, is the one that published tables report on: it
    is a test set here, so that no checkpoint is chosen on the cases that are then scored.
    """
    file = packaged_folder("splits") / f"{dataset}.yaml"
    if not file.is_file():
        return None
    tree = _yaml(file)
    tree["labeled"] = {str(key): groups for key, groups in tree["labeled"].items()}
    facts: OfficialSplits = parse(tree, OfficialSplits, str(file))
    if not facts.test:
        facts = msgspec.structs.replace(facts, val=(), test=facts.val)
    return facts


def label_key(labeled: str) -> str:
    """`4`, `5%` or `all`, however it was typed. Raises UsageError."""
    text = labeled.strip().lower()
    if text == "all":
        return text
    if not re.fullmatch(r"\d+|\d+(\.\d+)?%", text) or float(text.rstrip("%")) == 0:
        raise UsageError(
            f"--labeled {labeled!r}: expected a number such as 4, a share such as 5%, or all"
        )
    return f"{float(text[:-1]):g}%" if text.endswith("%") else str(int(text))


def parse_count(text: str, of: int, option: str) -> int:
    """How many `text` (a number, or a share such as 10%, rounded half up and at least one) is of `of`."""
    if not re.fullmatch(r"\d+|\d+(\.\d+)?%", text.strip()):
        raise UsageError(f"{option} {text!r}: expected a number such as 4 or a share such as 10%")
    if not text.strip().endswith("%"):
        return int(text)
    share = float(text.strip()[:-1])
    if share > 100:
        raise UsageError(f"{option} {text!r}: a share is at most 100%")
    return max(int(of * share / 100 + 0.5), 1) if share else 0


def seeded_order(groups: Iterable[str], seed: int) -> list[str]:
    """`groups` in an order that depends on the seed and the names alone."""
    return sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())


def preview(names: Sequence[str], limit: int = 5) -> str:
    """The first names, and how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def available_splits(
    dataset: str, facts: OfficialSplits | None, made: Iterable[str], key: str = "N"
) -> str:
    """The end of an error message: label counts that exist, and the command that makes another."""
    known = [f"official: {', '.join(facts.labeled)}"] if facts else []
    known += [f"made: {', '.join(made)}"] if made else []
    return "; ".join([*known, f"make another with: crkd make-splits {dataset} --labeled {key}"])


def _yaml(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the split {file}: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or "train" not in tree or "labeled" not in tree:
        raise UsageError(
            f"{file} is no split: expected dataset, name, train, labeled, val and test"
        )
    return tree
