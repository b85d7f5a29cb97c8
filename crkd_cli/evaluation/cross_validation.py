"""Check that checkpoints are the folds of one cross-validation."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crkd_cli.config import dump
from crkd_cli.data.splits import Fold, preview
from crkd_cli.errors import UsageError
from crkd_cli.inference.ensemble import check_all_folds
from crkd_cli.runtime.checkpoint import Checkpoint
from crkd_cli.runtime.checkpoint_facts import read_facts

# Keys of `train` that say how a run is executed and not what it computes.
EXECUTION_KEYS = ("device", "graphs", "log_every", "save_minutes", "tensorboard")


def common_folder(folds: Sequence[Checkpoint]) -> Path | None:
    """Return the folder of the runs if it has all folds of one cross-validation, else None."""
    parents = {fold.path.parent.parent for fold in folds}
    if len(parents) > 1 or not all(fold.split.fold for fold in folds):
        return None
    numbers = {_fold(member).number for member in folds}
    return parents.pop() if len(numbers) == _fold(folds[0]).count else None


def by_number(folds: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return the folds in the order of their numbers."""
    return sorted(folds, key=lambda fold: _fold(fold).number)


def check_folds(members: Sequence[Checkpoint]) -> None:
    """Raise UsageError unless `members` are all folds of one cross-validation, trained alike."""
    first = members[0]
    found: dict[int, Checkpoint] = {}
    for member in members:
        number = _fold(member).number
        twin = found.setdefault(number, member)
        if twin is not member:
            raise UsageError(
                f"{twin.path} and {member.path} are both fold {number}; evaluate the folds of each "
                "run by themselves"
            )
        if difference := _describe_difference(first, member):
            raise UsageError(
                f"{first.path} and {member.path} are not folds of one cross-validation: "
                f"{difference}; train them with the same command (crkd train --folds)"
            )
    check_all_folds(first.path.parent.parent, members)
    held_out = Counter(group for member in members for group in _fold(member).held_out)
    if repeated := [group for group, times in held_out.items() if times > 1]:
        raise UsageError(
            f"{first.path.parent.parent}: several folds hold out {preview(repeated)}; train them "
            "with the same command (crkd train --folds)"
        )
    _check_equally_long(members)


def _check_equally_long(members: Sequence[Checkpoint]) -> None:
    """Raise UsageError if a fold has been trained less far than another one."""
    steps = {}
    for member in members:
        facts = read_facts(member.path.parent / "last.pth")  # best.pth is of an earlier step
        steps[_fold(member).number] = facts.step if facts else member.step
    least, most = (choose(steps, key=lambda number: steps[number]) for choose in (min, max))
    if steps[least] != steps[most]:
        raise UsageError(
            f"{members[0].path.parent.parent}: fold {least} is at step {steps[least]}, fold {most} "
            f"at step {steps[most]}; rerun crkd train --folds to finish them"
        )


def _describe_difference(first: Checkpoint, other: Checkpoint) -> str:
    """Say what differs that all folds must have in common; empty if nothing does."""
    if first.split.name != other.split.name or _fold(first).count != _fold(other).count:
        return f"their splits are {first.split.title} and {other.split.title}"
    if (first.path.name == "best.pth") != (other.path.name == "best.pth"):
        return "one is the best and one the last checkpoint"
    if first.user_method != other.user_method:
        return "the file of the method has changed"
    ours, theirs = _settings(first), _settings(other)
    keys = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
    return f"{keys[0]} is {ours.get(keys[0])} and {theirs.get(keys[0])}" if keys else ""


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the settings of a run by key, without those of its execution."""
    result = {}
    for section, tree in dump(checkpoint.config).items():
        for key, value in tree.items() if isinstance(tree, dict) else [("", tree)]:
            if section != "train" or key not in EXECUTION_KEYS:
                result[f"{section}.{key}".rstrip(".")] = value
    return result


def _fold(checkpoint: Checkpoint) -> Fold:
    assert checkpoint.split.fold
    return checkpoint.split.fold
