"""Ensembles: checkpoints whose predicted probabilities can be averaged."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from crkd_cli.data.changes import compare_kinds
from crkd_cli.data.labels import describe_classes
from crkd_cli.data.splits import preview
from crkd_cli.errors import UsageError
from crkd_cli.runtime.checkpoint import Checkpoint, load_checkpoint
from crkd_cli.runtime.class_rule import ClassRule
from crkd_cli.runtime.run_folder import find_checkpoints


def load_ensemble(paths: Sequence[Path]) -> list[Checkpoint]:
    """Load the checkpoints that `paths` stand for, in order: see `find_checkpoints`.

    They may be of other methods, networks and splits, but predict the same classes from the same
    input. Raises CrkdError if one cannot be loaded, and UsageError if they do not fit together, or
    if a folder of folds lacks one of them.
    """
    members = []
    for path in paths:
        found = [load_checkpoint(file) for file in find_checkpoints(path)]
        _check_folders(path, found)
        members += found
    first = members[0]
    seen: set[Path] = set()
    for member in members:
        file = member.path.resolve()
        if file in seen:
            raise UsageError(f"{member.path} is given twice; give every checkpoint once")
        seen.add(file)
        if difference := _describe_difference(first, member):
            raise UsageError(
                f"{first.path} and {member.path} cannot form an ensemble: {difference}; give "
                "checkpoints that were trained on the same dataset with the same data.frame"
            )
    return members


def check_all_folds(folder: Path, folds: Sequence[Checkpoint]) -> None:
    """Raise UsageError if `folds` are not all folds of their cross-validation."""
    splits = [member.split.fold for member in folds if member.split.fold]
    count = splits[0].count
    missing = set(range(1, count + 1)) - {fold.number for fold in splits}
    if missing:
        numbers = preview([str(number) for number in sorted(missing)])
        raise UsageError(
            f"{folder} lacks fold {numbers} of {count}; rerun the command that trained the others, "
            "with --folds, or give one of its folders alone"
        )


def stored_rules(members: Sequence[Checkpoint]) -> tuple[ClassRule, ...]:
    """Return the post-processing in a checkpoint: a rule per foreground class, or none.

    The rules in the members of an ensemble were chosen for each alone, and are not used for it.
    """
    return members[0].postprocessing if len(members) == 1 else ()


def _check_folders(path: Path, found: Sequence[Checkpoint]) -> None:
    """Check the folders of folds among what `path` stands for."""
    by_folder = defaultdict(list)
    for member in found:
        run = member.path.parent
        if member.split.fold and path not in (member.path, run):
            by_folder[run.parent].append(member)
    for folder, folds in by_folder.items():
        check_all_folds(folder, folds)


def _describe_difference(first: Checkpoint, other: Checkpoint) -> str:
    """Say which property differs first; empty if none does."""
    ours, theirs = first.spec, other.spec
    if ours.classes != theirs.classes:
        classes = describe_classes(ours.classes), describe_classes(theirs.classes)
        return f"the classes are {' and '.join(classes)}"
    facts = [
        ("the dataset", ours.name, theirs.name),
        *compare_kinds(ours, theirs),
        ("the network's input", _describe_input(first), _describe_input(other)),
    ]
    different = (f"{what} is {old} and {new}" for what, old, new in facts if old != new)
    return next(different, "")


def _describe_input(checkpoint: Checkpoint) -> str:
    """Describe the frame, except the stride, which only the paper protocol uses."""
    frame = checkpoint.config.data.frame
    kind = "resized to" if frame.resize else "patches of"
    return f"{kind} {' × '.join(map(str, frame.size))}"
