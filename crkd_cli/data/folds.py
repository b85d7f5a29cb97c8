"""The folds of a cross-validation: each patient with a label is held out by one of them.

prepared/NAME/splits/folds/LABELED.yaml   made last by `make-splits --folds` for this label count

The model of a fold is scored on the patients that it holds out. They are in no other part of its
split, so no checkpoint, stopping point or post-processing is chosen on them.
"""

from collections import Counter
from pathlib import Path

import msgspec

from crkd_cli.config import Strict, parse
from crkd_cli.data.splits import (
    Fold,
    Split,
    check_alone,
    check_dataset,
    label_key,
    preview,
    read_tree,
    write_tree,
)
from crkd_cli.data.store import Store
from crkd_cli.errors import UsageError


class FoldParts(Strict, frozen=True):
    """What a fold holds out, and whose labels it trains and validates with."""

    held_out: tuple[str, ...]
    labeled: tuple[str, ...]
    val: tuple[str, ...] = ()


class Folds(Strict, frozen=True):
    """The folds of a dataset.

    The fold's split has all of `train` in its train part, except what it holds out or validates on.
    """

    dataset: str
    name: str  # for people: 4-folds5-seed1337 …
    train: tuple[str, ...]
    folds: tuple[FoldParts, ...]
    test: tuple[str, ...] = ()  # in no fold

    def __post_init__(self) -> None:
        if len(self.folds) < 2:
            raise ValueError("a cross-validation has at least two folds")
        counts = Counter(group for fold in self.folds for group in fold.held_out)
        if repeated := [group for group, count in counts.items() if count > 1]:
            raise ValueError(f"held out by several folds: {preview(repeated)}")
        if outside := sorted(counts.keys() - set(self.train)):
            raise ValueError(f"held out by a fold, but not in train: {preview(outside)}")
        for number, fold in enumerate(self.folds, start=1):
            if not fold.held_out:
                raise ValueError(f"fold {number} holds out no patient")
            self.split(number)  # raises ValueError if its parts are not disjoint

    def split(self, number: int) -> Split:
        """Return the split of fold `number`, from 1 on."""
        fold = self.folds[number - 1]
        without = {*fold.held_out, *fold.val}
        return Split(
            dataset=self.dataset,
            name=self.name,
            train=tuple(group for group in self.train if group not in without),
            labeled=fold.labeled,
            val=fold.val,
            test=self.test,
            fold=Fold(number, len(self.folds), fold.held_out),
        )

    def splits(self) -> list[Split]:
        """Return the splits of all folds."""
        return [self.split(number) for number in range(1, len(self.folds) + 1)]


def find_folds(store: Store, labeled: str | None, file: Path | None = None) -> Folds:
    """Return the folds to train: those in `file`, else those made last for `labeled`.

    Without both, they are the only ones that were made. Raises UsageError, which says which exist
    and how to make others.
    """
    if file is not None:
        check_alone(labeled)
        folds = read_folds(file)
        check_dataset(folds.dataset, store, file)
        return folds
    made = {path.stem: path for path in sorted(_folder(store).glob("*.yaml"))}
    key = label_key(labeled) if labeled is not None else None
    if key is None and len(made) == 1:
        key = next(iter(made))
    if key in made:
        return read_folds(made[key])
    advice = f"make them with: crkd make-splits {store.root.name} --labeled {key or 'N'} --folds 5"
    if made:
        advice = f"made: {', '.join(made)}; {advice}"
    if key is None and made:
        raise UsageError(f"--labeled is missing; {advice}")
    wanted = f" with --labeled {key}" if key else ""
    raise UsageError(f"no folds of {store.root.name}{wanted} exist; {advice}")


def folds_file(store: Store, labeled: str) -> Path:
    """Return where the folds for this label count are kept; new ones replace them."""
    return _folder(store) / f"{label_key(labeled)}.yaml"


def read_folds(file: Path) -> Folds:
    """Read a file of folds. Raises UsageError, which names the file and what is wrong."""
    tree = read_tree(file)
    if "folds" not in tree:
        raise UsageError(
            f"{file} has no folds; drop --folds and --fold, or make some: crkd make-splits NAME "
            "--folds 5 --out FILE"
        )
    folds: Folds = parse(tree, Folds, str(file))
    return folds


def write_folds(folds: Folds, file: Path) -> None:
    """Write a file of folds. Raises CrkdError if this is impossible."""
    write_tree(msgspec.to_builtins(folds), file)


def _folder(store: Store) -> Path:
    return store.root / "splits" / "folds"
