"""Find and read the results of `crkd evaluate`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.evaluation.cross_validation import EXECUTION_KEYS
from crkd_cli.evaluation.files import (
    CASES,
    DAMAGE,
    RENEW,
    SUMMARY,
    TableFacts,
    damaged,
    read_summary,
    read_table,
)
from crkd_cli.metrics.names import class_heading
from crkd_cli.metrics.presence import Presence, count_absent
from crkd_cli.runtime.class_rule import ClassRule
from crkd_cli.runtime.run_folder import fold_folders, result_checkpoint
from crkd_cli.text import format_range

# Keys of `train` that may differ between runs of one method.
_FREE_KEYS = ("seed", *EXECUTION_KEYS)


class ClassFacts(msgspec.Struct, frozen=True):
    """A foreground class."""

    value: int  # in the label files


class MemberFacts(msgspec.Struct, frozen=True):
    """A checkpoint of an ensemble."""

    checkpoint: str
    step: int
    seed: int


class FoldFacts(MemberFacts, frozen=True):
    """A checkpoint of a cross-validation, and the cases that it held out."""

    labeled: int  # patients
    cases: list[str]
    postprocessing: tuple[ClassRule, ...] = ()


class Facts(msgspec.Struct, frozen=True):
    """What was scored, on what and how."""

    protocol: Literal["strict", "paper"]
    dataset: str
    part: str
    method: str
    labeled: int
    split: str
    seed: int
    checkpoint: str
    step: int
    truth: str  # digest of the labels scored against
    images: str  # digest of the images
    config: dict[str, Any]  # resolved, as in the run's config.yaml
    classes: dict[str, ClassFacts]  # without the background
    mean: dict[str, Any]  # by metric
    cases_csv: TableFacts
    other_data: bool = False  # the dataset had changed since training
    tta: bool = False  # test-time mirroring
    postprocessing: tuple[ClassRule, ...] = ()  # of every foreground class; empty: raw
    members: tuple[MemberFacts, ...] = ()  # all of an ensemble, empty for a single checkpoint
    folds: tuple[FoldFacts, ...] = ()  # of a cross-validation, empty for anything else
    from_folds: bool = False  # whether models were trained on folds, and scored on any part
    method_sha256: str | None = None  # of the user's own method file, if the method is in one

    @property
    def title(self) -> str:
        """The method, and whether it was an ensemble, mirrored or post-processed."""
        title = self.method
        if self.members:
            title += f" × {len(self.members)}"
        used = ["tta"] if self.tta else []
        if self.postprocessed:
            used.append("post-processing")
        return f"{title} with {' and '.join(used)}" if used else title

    @property
    def postprocessed(self) -> bool:
        """Whether masks were post-processed, by a fold at least."""
        return bool(self.postprocessing) or any(fold.postprocessing for fold in self.folds)

    @property
    def part_title(self) -> str:
        """The part of the split, or which folds together."""
        return f"{len(self.folds)} folds" if self.folds else self.part

    @property
    def labeled_patients(self) -> str:
        """With how many labeled patients a model was trained: 4, or 16 to 17 in folds."""
        return format_range([self.labeled, *(fold.labeled for fold in self.folds)])

    def settings(self) -> str:
        """Return a text that is the same for runs that repeat each other with other seeds."""
        config = dict(self.config)
        config["methods"] = config["methods"].get(self.method, {})
        config["train"] = {k: v for k, v in config["train"].items() if k not in _FREE_KEYS}
        tree = {**config, "method_sha256": self.method_sha256, "tta": self.tta}
        tree["members"] = len(self.members)
        # Not its rules, which differ between seeds.
        tree["postprocessed"] = self.postprocessed
        return json.dumps(tree, sort_keys=True)

    def circumstances(self) -> dict[str, str]:
        """Return what a fair comparison of methods keeps the same.

        These are the choice of the checkpoint, how it predicts, and all settings but the method's
        own.
        """
        mirroring = "used" if self.tta else "not used"
        result = {
            "the checkpoint": Path(self.checkpoint).name,
            "test-time mirroring": mirroring,
            "post-processing": "used" if self.postprocessed else "not used",
            "the number of checkpoints": str(max(1, len(self.members))),
        }
        for section, tree in self.config.items():
            if isinstance(tree, dict) and section != "methods":
                for key, value in tree.items():
                    if section != "train" or key not in _FREE_KEYS:
                        result[f"{section}.{key}"] = json.dumps(value)
        return result


@dataclass(frozen=True)
class Evaluation:
    """The scores of one run."""

    folder: Path
    facts: Facts
    cases: list[str]
    groups: list[str]  # patient of every case
    classes: dict[str, int]  # without the background, with their values in the label files
    metrics: list[str]
    scores: NDArray[np.float64]  # [cases, classes, metrics], NaN if undefined
    presence: list[Presence]  # of every class

    @property
    def class_headings(self) -> dict[str, str]:
        """The classes as in tables: "tumor (7)", or the name alone if the value is the number."""
        return {
            name: class_heading(name, value, number)
            for number, (name, value) in enumerate(self.classes.items(), start=1)
        }

    @property
    def checkpoints(self) -> dict[Path, int]:
        """The scored checkpoints with their steps: one, or those of an ensemble or of folds."""
        facts = self.facts
        if facts.members:
            return {Path(member.checkpoint): member.step for member in facts.members}
        if facts.folds:
            return {self._locate(Path(fold.checkpoint), 2): fold.step for fold in facts.folds}
        return {self._locate(Path(facts.checkpoint), 1): facts.step}

    @property
    def checkpoint(self) -> Path:
        """The scored checkpoint, or the first of several."""
        return next(iter(self.checkpoints))

    @property
    def runs(self) -> list[Path]:
        """The run folders: one, or those of the folds; of an ensemble, the first."""
        folders = [checkpoint.parent for checkpoint in self.checkpoints]
        return folders if self.facts.folds else folders[:1]

    @property
    def run(self) -> Path:
        """The run folder, or the folder of all folds."""
        return self.runs[0].parent if self.facts.folds else self.runs[0]

    def _locate(self, checkpoint: Path, names: int) -> Path:
        """Return a checkpoint: beside the evaluation if it exists there, else at its old path.

        Beside the evaluation is what has the last `names` parts of the path.
        """
        beside = self.folder.parent.joinpath(*checkpoint.parts[-names:])
        return beside if beside.is_file() else checkpoint


def evaluation_folder(
    checkpoint: Path, protocol: str, part: str, *, tta: bool = False, raw: bool = False
) -> Path:
    """Return the default folder of an evaluation: beside `checkpoint`.

    The checkpoint's name is added if it is not the result of its run.
    """
    name = f"evaluation-{protocol}-{part}{'-tta' if tta else ''}{'-raw' if raw else ''}"
    folder = checkpoint.parent / name
    result = result_checkpoint(checkpoint.parent)
    if result.is_file() and checkpoint.name != result.name:
        return folder.with_name(f"{folder.name}-{checkpoint.stem}")
    return folder


def find_evaluation(path: Path, protocol: str, part: str | None) -> Path:
    """Return the evaluation folder for a run folder, an evaluation folder or one of its files.

    In a run folder this is the evaluation of its result under `protocol` on `part`, by default fold
    if there is one, else test, or all parts that the paper protocol pools. A folder of folds has
    evaluations like a run folder.

    Raises CrkdError if `path` does not exist, and UsageError if it has no such evaluation.
    """
    folder = path.parent if path.name in (SUMMARY, CASES) else path
    if (folder / SUMMARY).is_file():
        return folder
    if not folder.is_dir():
        advice = "give run folders, or evaluation folders that crkd evaluate wrote"
        if folder.exists():
            raise UsageError(f"{folder} is a file; {advice}")
        raise CrkdError(f"there is no {folder}; {advice}")

    parts = [part] if part else ["fold", "test"]
    if protocol == "paper" and not part:
        parts = ["val+test", "test"]
    for name in parts:
        evaluation = evaluation_folder(result_checkpoint(folder), protocol, name)
        if (evaluation / SUMMARY).is_file():
            return evaluation
    raise UsageError(_missing_evaluation(folder, protocol, part))


def _missing_evaluation(run: Path, protocol: str, part: str | None) -> str:
    """Say what is missing in the folder `run` and which command makes it."""
    checkpoint, missing = result_checkpoint(run), part or "test"
    if fold_folders(run):
        checkpoint, missing = run, part or "fold"
    elif not checkpoint.is_file():
        return (
            f"{run} is neither a run folder (no best.pth or last.pth) "
            f"nor an evaluation folder (no {SUMMARY})"
        )
    command = f"crkd evaluate {checkpoint}"
    if protocol == "paper":
        command += " --protocol paper"
    if part:
        command += f" --part {part}"
    others = [file.parent.name for file in sorted(run.glob(f"evaluation-*-*/{SUMMARY}"))]
    hint = f" (it has {', '.join(others)}: give that folder)" if others else ""
    return f"{run} has no {protocol} evaluation of {missing}{hint}; run: {command}"


def read_evaluation(folder: Path) -> Evaluation:
    """Read the evaluation in `folder`.

    Raises CrkdError if a file is missing or damaged, if they belong to different evaluations or
    another version wrote them, or if the checkpoint has been trained further.
    """
    facts = _read_facts(folder / SUMMARY)
    classes = {name: info.value for name, info in facts.classes.items()}
    metrics = list(facts.mean)
    table = read_table(folder / CASES, facts.cases_csv, classes, metrics)
    presence = count_absent(table.truth, table.predicted)
    evaluation = Evaluation(
        folder, facts, table.cases, table.groups, classes, metrics, table.scores, presence
    )
    for checkpoint, scored in evaluation.checkpoints.items():
        step = _current_step(checkpoint)
        if step > scored:
            raise CrkdError(
                f"{checkpoint} is at step {step}, but {folder} is of step {scored}; {RENEW}"
            )
    return evaluation


def _read_facts(file: Path) -> Facts:
    """Return the facts in summary.json. Raises CrkdError if it is damaged."""
    tree = read_summary(file)
    try:
        facts: Facts = msgspec.convert(tree, Facts)
        if "dice" not in facts.mean or not Path(facts.checkpoint).name:
            raise ValueError("it names no Dice or no checkpoint")
        # Both read the configuration, which has no fixed type.
        facts.settings(), facts.circumstances()
    except DAMAGE as error:
        raise damaged(file, error) from None
    return facts


def _current_step(checkpoint: Path) -> int:
    """Return the step of a checkpoint according to metrics.json, or 0 if that does not say.

    metrics.json is written when a run ends.
    """
    file = checkpoint.with_name("metrics.json")
    if not checkpoint.is_file() or not file.is_file():
        return 0
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
        best = metrics["best"] or {}
        steps = {"last.pth": metrics["steps"], "best.pth": best.get("step", 0)}
        return int(steps.get(checkpoint.name, 0))
    except DAMAGE as error:
        reason = f"{type(error).__name__}: {error}"
        raise CrkdError(f"{file} cannot be used ({reason}); remove it") from None
