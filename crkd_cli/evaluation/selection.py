"""Select what is scored: cases, each with the checkpoints that predict it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from crkd_cli.data.splits import Part
from crkd_cli.data.store import CaseInfo, Store
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.evaluation import paper
from crkd_cli.evaluation.cross_validation import by_number, check_folds, common_folder
from crkd_cli.evaluation.results import evaluation_folder
from crkd_cli.inference.ensemble import stored_rules
from crkd_cli.inference.inferer import Protocol
from crkd_cli.progress import Notify
from crkd_cli.runtime.checkpoint import Checkpoint
from crkd_cli.runtime.class_rule import ClassRule


class Share(NamedTuple):
    """Cases, and how they are predicted: by a checkpoint or an ensemble."""

    members: list[Checkpoint]
    cases: list[CaseInfo]
    rules: tuple[ClassRule, ...]  # of post-processing, per foreground class; none: raw


@dataclass(frozen=True)
class Selection:
    """What an evaluation scores."""

    members: list[Checkpoint]
    part: str  # test, val, fold, or several that the paper protocol pools: val+test
    shares: list[Share]  # one, or those of a cross-validation: each case has one model

    @property
    def is_cross_validation(self) -> bool:
        """Whether each case is predicted by the fold that held it out."""
        return len(self.shares) > 1

    @property
    def cases(self) -> list[CaseInfo]:
        """All cases."""
        return [case for share in self.shares for case in share.cases]

    @property
    def labeled(self) -> int:
        """With how many labeled patients a model was trained; of folds, at least."""
        if self.is_cross_validation:
            return min(len(fold.split.labeled) for fold in self.members)
        return len({group for member in self.members for group in member.split.labeled})

    def describe(self) -> str:
        """Say which checkpoints are scored on how many cases."""
        if self.is_cross_validation:
            folder = common_folder(self.members)
            files = [str(member.path) for member in self.members]
            folds = f"the {len(files)} folds of {folder}" if folder else ", ".join(files)
            return f"{folds}, each on the cases that it held out, {len(self.cases)} in all"
        what = ", ".join(f"{member.path} (step {member.step})" for member in self.members)
        return f"{what} on {len(self.cases)} {self.part} cases"


def check_request(
    members: Sequence[Checkpoint], part: Part | None, protocol: Protocol, out: Path | None
) -> None:
    """Raise UsageError if the checkpoints cannot be scored together, or need a folder for it."""
    if protocol == "paper":
        paper.check_published(members[0].spec.source)
    if len(members) == 1:
        return
    is_cross_validation = _is_cross_validation(members, part)
    if protocol == "paper":
        what = "cross-validations" if is_cross_validation else f"an ensemble of {len(members)}"
        raise UsageError(
            f"the published protocol scores single models, not {what}; evaluate them one by one"
        )
    if is_cross_validation:
        check_folds(members)
    if out is None and common_folder(members) is None:
        raise UsageError(
            f"{len(members)} checkpoints are scored as one ensemble; give --out for its results, "
            "or evaluate them one by one"
        )


def select(
    members: list[Checkpoint],
    store: Store,
    part: Part | None,
    protocol: Protocol,
    notify: Notify,
    *,
    raw: bool,
) -> Selection:
    """Select the cases of the split that are scored: in `part`, or else in the default part.

    The folds of a cross-validation are scored on the cases that each held out, other checkpoints as
    one ensemble. Raises CrkdError if a part has no cases, and UsageError if the members of an
    ensemble have different ones.
    """

    def share(scored: list[Checkpoint], cases: Sequence[str]) -> Share:
        rules = () if raw or protocol == "paper" else stored_rules(scored)
        return Share(scored, [store.cases[case] for case in cases], rules)

    if _is_cross_validation(members, part):
        folds = by_number(members)
        shares = [share([fold], fold.split.cases(store, "fold")) for fold in folds]
        return Selection(folds, "fold", shares)
    parts = _choose_parts(members, part, protocol, notify)
    only = share(members, _common_cases(members, store, parts))
    if only.rules and "val" in parts:
        notify("post-processing was chosen on the validation cases, which inflates their scores")
    return Selection(members, "+".join(parts), [only])


def results_folder(
    selection: Selection, protocol: Protocol, *, tta: bool = False, raw: bool = False
) -> Path:
    """Return the default folder of the results: beside the checkpoint, or beside all folds."""
    members = selection.members
    folder = evaluation_folder(members[0].path, protocol, selection.part, tta=tta, raw=raw)
    parent = common_folder(members) if len(members) > 1 else None
    return parent / folder.name if parent else folder


def _is_cross_validation(members: Sequence[Checkpoint], part: Part | None) -> bool:
    folds = all(member.split.fold for member in members)
    return len(members) > 1 and folds and part in (None, "fold")


def _common_cases(members: Sequence[Checkpoint], store: Store, parts: Sequence[Part]) -> list[str]:
    """Return the cases in `parts` of the split, which must be the same for all members.

    A case in the same part of all splits is one that no member was trained on. Raises UsageError.
    """
    first = members[0]
    cases = _cases_in(first, store, parts)
    for other in members[1:]:
        if set(_cases_in(other, store, parts)) != set(cases):
            what = f"{'+'.join(parts)} cases"
        elif not other.split.fold and len(other.split.labeled) != len(first.split.labeled):
            what = "numbers of labeled cases"
        else:
            continue
        raise UsageError(
            f"the splits of {first.path} and {other.path} have different {what}; evaluate the "
            "checkpoints one by one"
        )
    return cases


def _cases_in(checkpoint: Checkpoint, store: Store, parts: Sequence[Part]) -> list[str]:
    return [case for part in parts for case in checkpoint.split.cases(store, part)]


def _choose_parts(
    members: Sequence[Checkpoint], part: Part | None, protocol: Protocol, notify: Notify
) -> tuple[Part, ...]:
    """Return the parts of the split to score: one, or those that the paper protocol pools.

    Raises CrkdError if the part has no cases.
    """
    split = members[0].split
    if part is None and protocol == "paper":
        pooled = paper.POOLED_PARTS.get(members[0].spec.source, ())
        if parts := tuple(name for name in pooled if split.groups_of(name)):
            return parts
    if part is None and split.fold:
        part = "fold"
    if part is None and split.val and not split.test:
        notify(f"split {split.name} has no test cases: scoring the validation cases")
        part = "val"
    part = part or "test"
    if not split.groups_of(part):
        other: Part = "val" if part == "test" else "test"
        advice = f"create one that has some: crkd make-splits {split.dataset} --help"
        if split.groups_of(other):
            advice = f"give --part {other}"
        raise CrkdError(f"split {split.name} has no {part} cases; {advice}")
    if part == "val" and any(
        member.best and member.best["step"] == member.step for member in members
    ):
        notify("the checkpoint was selected on the validation cases, which inflates their scores")
    return (part,)
