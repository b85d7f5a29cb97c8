"""What `crkd evaluate` has written, read back: the facts of summary.json and the scores of cases.csv."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from crkd_cli import renamed
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.runtime.run_folder import result_checkpoint

# What may differ between the runs of one method: the seed, and where and how a run was watched.
_FREE = ("seed", "device", "log_every", "save_minutes", "tensorboard")


class Facts(msgspec.Struct, frozen=True):
    """Who was scored, on what and how."""

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
    config: dict[str, Any]  # resolved, as in the run's config.yaml
    method_sha256: str | None = None  # of the user's own file that the method is from

    def settings(self) -> str:
        """The same text for runs that are repetitions of each other."""
        train = {key: value for key, value in self.config["train"].items() if key not in _FREE}
        own = {"methods": self.config["methods"].get(self.method, {}), "train": train}
        return json.dumps(
            {**self.config, **own, "method_sha256": self.method_sha256}, sort_keys=True
        )

    def circumstances(self) -> dict[str, str]:
        """What a fair comparison of methods has alike: which checkpoint, and the settings but the method's own."""
        shared = {
            section: tree
            for section, tree in self.config.items()
            if isinstance(tree, dict) and section != "methods"
        }
        settings = {
            f"{section}.{key}": json.dumps(value)
            for section, tree in shared.items()
            for key, value in tree.items()
        }
        free = {f"train.{key}" for key in _FREE}
        return {
            "the checkpoint": Path(self.checkpoint).name,
            **{k: v for k, v in settings.items() if k not in free},
        }


@dataclass(frozen=True)
class Evaluation:
    """The scores of one run."""

    folder: Path
    facts: Facts
    cases: list[str]
    groups: list[str]  # patient of every case
    classes: list[str]  # without the background
    metrics: list[str]
    scores: NDArray[np.float64]  # [cases, classes, metrics], NaN where undefined

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that was scored: beside the evaluation where it is there, else where it was."""
        beside = self.folder.parent / Path(self.facts.checkpoint).name
        return beside if beside.is_file() else Path(self.facts.checkpoint)

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.checkpoint.parent


def evaluation_folder(checkpoint: Path, protocol: str, part: str) -> Path:
    """Where the evaluation of `checkpoint` goes: beside it, and not in the place of that of the run's result."""
    of_run = result_checkpoint(checkpoint.parent)
    ending = f"-{checkpoint.stem}" if of_run.is_file() and checkpoint.name != of_run.name else ""
    return checkpoint.parent / f"evaluation-{protocol}-{part}{ending}"


def find_evaluation(given: Path, protocol: str, part: str | None) -> Path:
    """The evaluation folder that `given` means: a run folder, an evaluation folder, or one of its two files.

    Of a run folder: its result's evaluation under `protocol` of `part`, by default test (paper: all that it scores as one).
    Raises CrkdError if there is no `given`, UsageError that says what is there and which command makes what is missing.
    """
    if given.name in ("summary.json", "cases.csv"):
        given = given.parent
    if (given / "summary.json").is_file():
        return given
    if not given.is_dir():
        if given.exists():
            raise UsageError(
                f"{given} is a file; give run folders, or evaluation folders that crkd evaluate wrote"
            )
        raise CrkdError(
            f"there is no {given}; give run folders, or evaluation folders that crkd evaluate wrote"
        )
    parts = [part] if part else ["val+test", "test"] if protocol == "paper" else ["test"]
    for one in parts:
        if (
            folder := evaluation_folder(result_checkpoint(given), protocol, one) / "summary.json"
        ).is_file():
            return folder.parent
    checkpoint = result_checkpoint(given)
    if not checkpoint.is_file():
        raise UsageError(
            f"{given} is no run folder (no best.pth or last.pth) and no evaluation folder (no summary.json)"
        )
    options = (" --protocol paper" if protocol == "paper" else "") + (
        f" --part {part}" if part else ""
    )
    there = [file.parent.name for file in sorted(given.glob("evaluation-*-*/summary.json"))]
    other = f" (there is {', '.join(there)}: give its folder)" if there else ""
    raise UsageError(
        f"{given} has no {protocol} evaluation of {parts[-1]}{other}; run: crkd evaluate {checkpoint}{options}"
    )


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation in `folder`. Raises CrkdError if a file is missing, damaged, or older than the run."""
    again = "run crkd evaluate again"
    file = folder / "summary.json"
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        facts: Facts = msgspec.convert(tree, Facts)
        renamed.translate_config(facts.config)
        metrics = list(tree["mean"])
        classes = list(tree["classes"])
        file = folder / "cases.csv"
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        patients = {row["case"]: row["group"] for row in rows}
        cells = {
            (row["case"], row["class"]): [float(row[metric] or math.nan) for metric in metrics]
            for row in rows
        }
        scores = np.array([[cells[case, name] for name in classes] for case in patients])
        if len(cells) != len(rows) or scores.size != len(rows) * len(metrics) or not rows:
            raise ValueError("rows are missing or too many")
    except (OSError, ValueError, KeyError, TypeError, msgspec.ValidationError) as error:
        raise CrkdError(
            f"{file} cannot be used ({' '.join(str(error).split())}); {again}"
        ) from None
    found = Evaluation(
        folder, facts, list(patients), list(patients.values()), classes, metrics, scores
    )
    if (now := _step(found.checkpoint)) > facts.step:
        raise CrkdError(
            f"{found.checkpoint} is of step {now}, but {folder} of step {facts.step}; {again}"
        )
    return found


def _step(checkpoint: Path) -> int:
    """The step of a checkpoint when its run last came to an end, by metrics.json; 0 if that does not tell."""
    file = checkpoint.with_name("metrics.json")
    if not checkpoint.is_file() or not file.is_file():
        return 0
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
        return int(
            {"last.pth": metrics["steps"], "best.pth": (metrics["best"] or {}).get("step", 0)}.get(
                checkpoint.name, 0
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CrkdError(
            f"{file} cannot be used ({type(error).__name__}: {error}); remove it"
        ) from None
