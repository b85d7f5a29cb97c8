"""Score a model on the cases of a prepared dataset and write the results.

Legend: N cases, K classes with the background, M metrics, *S spatial axes.
"""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from crkd_cli import __version__, world
from crkd_cli.config import dump
from crkd_cli.data.splits import Part
from crkd_cli.data.store import CaseInfo, Store, digest
from crkd_cli.errors import CrkdError
from crkd_cli.evaluation import paper
from crkd_cli.evaluation.literature import PublishedRow, published_rows
from crkd_cli.evaluation.results import evaluation_folder
from crkd_cli.inference.inferer import Inferer, Protocol, build_inferer
from crkd_cli.metrics.overlap import confusion, dice, jaccard
from crkd_cli.metrics.summary import Interval, Summary, summarize
from crkd_cli.metrics.surface import surface
from crkd_cli.paths import atomic_write
from crkd_cli.pipeline import run_pipeline
from crkd_cli.progress import Advance, Notify, Progress
from crkd_cli.runtime.checkpoint import Checkpoint, load_checkpoint
from crkd_cli.runtime.distributed import joint_output_folder

TOLERANCE = 2.0  # of the NSD, in mm or px


@dataclass(frozen=True)
class EvaluationReport:
    """What was scored, how, and the results."""

    facts: dict[str, Any]  # protocol, dataset, part, checkpoint …
    metrics: tuple[str, ...]  # column names with their units: dice, hd95_mm …
    classes: dict[str, list[Summary]]  # per foreground class, one per metric
    mean: list[Summary]  # over the classes, one per metric
    published: list[PublishedRow]  # for the same dataset and number of labeled cases
    folder: Path  # of cases.csv and summary.json

    def tree(self) -> dict[str, Any]:
        """Return plain dicts and lists for JSON, with None for undefined scores."""
        return {
            **self.facts,
            "classes": {name: self._by_metric(scores) for name, scores in self.classes.items()},
            "mean": self._by_metric(self.mean),
            "published": msgspec.to_builtins(self.published),
        }

    def _by_metric(self, summaries: list[Summary]) -> dict[str, Any]:
        tree = {}
        for metric, summary in zip(self.metrics, summaries, strict=True):
            values = asdict(summary)
            tree[metric] = {
                name: None if math.isnan(value) else value for name, value in values.items()
            }
        return tree


def evaluate(
    file: Path,
    root: Path,
    notify: Notify,
    progress: Progress,
    part: Part | None = None,
    protocol: Protocol = "strict",
    out: Path | None = None,
    device: str | None = None,
) -> EvaluationReport:
    """Score a checkpoint on cases of its split and write cases.csv and summary.json.

    Several processes share the cases; the first one writes.

    Args:
        file: A checkpoint, or a run folder.
        root: The data root, with the prepared dataset under it.
        notify: Called with messages for the user.
        progress: Opens a progress bar.
        part: Default: test, or val if the split has no test cases; for the paper protocol the
            published part.
        protocol: strict or paper.
        out: Folder of the results. Default: beside the checkpoint, see
            `crkd_cli.evaluation.results.evaluation_folder`.
        device: None or auto: the first GPU, else the CPU.

    Raises CrkdError if the checkpoint, the dataset or a case is missing, or the dataset is not
    the one that the model was trained on.
    """
    checkpoint = load_checkpoint(file)
    if protocol == "paper":
        paper.check_published(checkpoint.spec.source)
    store = Store(root / "prepared" / checkpoint.config.data.name)
    _check_same_dataset(checkpoint, store)
    parts = _choose_parts(checkpoint, part, protocol, notify)
    part_name = "+".join(parts)
    cases = []
    for name in parts:
        cases += [store.cases[case] for case in checkpoint.split.cases(store, name)]
    folder = out or evaluation_folder(checkpoint.path, protocol, part_name)
    with joint_output_folder(folder, "--out"):
        notify(
            f"evaluating {checkpoint.path} (step {checkpoint.step}) on {len(cases)} {part_name} "
            f"cases, {protocol} protocol"
        )
        notify(f"results: {folder}")

        inferer = build_inferer(checkpoint, device, notify, protocol)
        scorer = Scorer(checkpoint.spec.source, len(checkpoint.spec.classes), protocol, cases)
        scores = _score_cases(inferer, store, cases, scorer, progress)
        precision = str(inferer.precision).removeprefix("torch.")
        facts = _collect_facts(checkpoint, protocol, part_name, cases, precision)
        report = _summarize(checkpoint, facts, scorer.metrics, scores, cases, folder)
        if world.rank() == 0:
            _write(report, cases, scores)
        return report


class Scorer:
    """Computes all metrics of a case.

    Distances are in mm if the spacing of every case is known, else in px; with the paper protocol
    always in px.
    """

    def __init__(
        self, source: str, classes: int, protocol: Protocol, cases: Sequence[CaseInfo]
    ) -> None:
        self._source, self._classes, self._protocol = source, classes, protocol
        # The spacing is that of the stored image, so it does not hold at another native size.
        in_mm = protocol == "strict" and all(
            case.spacing_mm and not case.native_shape for case in cases
        )
        self._unit = "mm" if in_mm else "px"
        distances = ["hd95_", "assd_", "asd_", f"nsd_{TOLERANCE:g}"]
        if protocol == "paper":
            distances = ["hd95_", "asd_"]
        self.metrics = ("dice", "jaccard", *(name + self._unit for name in distances))

    def __call__(
        self, labels: NDArray[np.uint8], truth: NDArray[np.uint8], case: CaseInfo
    ) -> NDArray[np.float64]:
        """Return scores [K − 1, M] of `labels` [*S] against `truth` [*S]; NaN if undefined."""
        masks = [(labels == k, truth == k) for k in range(1, self._classes)]
        if self._protocol == "paper":
            return np.stack([paper.scores(*pair, self._source) for pair in masks])
        spacing = case.spacing_mm if self._unit == "mm" and case.spacing_mm else (1.0,) * truth.ndim
        voxels = confusion(labels, truth, self._classes)
        overlap = np.stack([dice(voxels)[1:], jaccard(voxels)[1:]], axis=1)
        return np.hstack([overlap, [surface(*pair, spacing, TOLERANCE) for pair in masks]])


def _check_same_dataset(checkpoint: Checkpoint, store: Store) -> None:
    """Raise CrkdError unless `store` is of the kind that the model was trained on."""
    for name in ("source", "classes", "channels", "dims", "intensity", "stored_size", "z_last"):
        trained, stored = getattr(checkpoint.spec, name), getattr(store.spec, name)
        if trained != stored:
            raise CrkdError(
                f"{store.root} is not the dataset that {checkpoint.path} was trained on: {name} is "
                f"{stored} instead of {trained}; give the right --data-root"
            )


def _choose_parts(
    checkpoint: Checkpoint, part: Part | None, protocol: Protocol, notify: Notify
) -> tuple[Part, ...]:
    """Return the parts of the split to score: one, or those that the paper protocol pools.

    Raises CrkdError if the part has no cases.
    """
    split = checkpoint.split
    if part is None and protocol == "paper":
        pooled = paper.POOLED_PARTS.get(checkpoint.spec.source, ())
        if parts := tuple(name for name in pooled if getattr(split, name)):
            return parts
    if part is None and split.val and not split.test:
        notify(f"split {split.name} has no test cases: scoring the validation cases")
        part = "val"
    part = part or "test"
    if not getattr(split, part):
        other = "val" if part == "test" else "test"
        advice = f"create one that has some: crkd make-splits {split.dataset} --help"
        if getattr(split, other):
            advice = f"give --part {other}"
        raise CrkdError(f"split {split.name} has no {part} cases; {advice}")
    if part == "val" and checkpoint.best and checkpoint.best["step"] == checkpoint.step:
        notify("the checkpoint was selected on the validation cases, which inflates their scores")
    return (part,)


def _score_cases(
    inferer: Inferer, store: Store, cases: list[CaseInfo], scorer: Scorer, progress: Progress
) -> NDArray[np.float64]:
    """Return scores [N, K − 1, M] of `cases`, which all processes share."""
    shard = world.strided_shard(cases)
    with progress("evaluating", len(shard), "cases") as advance:
        scores = world.gather_results(list(_score_shard(inferer, store, shard, scorer, advance)))
    return np.stack(scores)


def _score_shard(
    inferer: Inferer, store: Store, cases: Sequence[CaseInfo], scorer: Scorer, advance: Advance
) -> Iterator[NDArray[np.float64]]:
    """Yield scores [K − 1, M] of every case.

    While a case is predicted, the next one is read and the previous one scored.
    """

    def read(case: CaseInfo) -> tuple[CaseInfo, NDArray[Any], NDArray[np.uint8]]:
        # Copied here, because a memory map does not read the file before it is used.
        return case, np.array(store.image(case.id)), np.array(store.native_label(case.id))

    def predict(
        loaded: tuple[CaseInfo, NDArray[Any], NDArray[np.uint8]],
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], CaseInfo]:
        case, image, truth = loaded
        return inferer(image, truth.shape), truth, case

    outcomes = run_pipeline(cases, read, predict, lambda predicted: scorer(*predicted))
    for case, outcome in zip(cases, outcomes, strict=True):
        yield outcome.result()
        advance(1, case.id)


def _collect_facts(
    checkpoint: Checkpoint, protocol: Protocol, part: str, cases: list[CaseInfo], precision: str
) -> dict[str, Any]:
    """Describe the evaluation: its model, its cases and how they are scored."""
    config, split = checkpoint.config, checkpoint.split
    interval = "95 %, Student's t over cases"
    if protocol == "strict":
        several = len({case.group for case in cases}) < len(cases)
        interval = f"95 %, bootstrap over {'patients' if several else 'cases'}"
    return {
        "protocol": protocol,
        "dataset": checkpoint.spec.name,
        "part": part,
        "cases": len(cases),
        "method": config.method,
        "method_sha256": checkpoint.user_method and checkpoint.user_method.sha256,
        "labeled": len(split.labeled),
        "split": split.name,
        "seed": config.train.seed,
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "truth": digest((case.id, case.label_sha256) for case in cases),
        "interval": interval,
        "precision": precision,
        "trained_with": checkpoint.code_version,
        "evaluated_with": __version__,
        "config": dump(config),
    }


def _summarize(
    checkpoint: Checkpoint,
    facts: dict[str, Any],
    metrics: tuple[str, ...],
    scores: NDArray[np.float64],
    cases: list[CaseInfo],
    folder: Path,
) -> EvaluationReport:
    """Summarize scores [N, K − 1, M] over cases."""
    interval: Interval = "bootstrap" if facts["protocol"] == "strict" else "t"
    groups = [case.group for case in cases]
    classes: dict[str, list[Summary]] = {name: [] for name in checkpoint.spec.class_names[1:]}
    means = []
    for values in np.moveaxis(scores, 2, 0):
        summaries, mean = summarize(values, interval, groups)
        means.append(mean)
        for name, summary in zip(classes, summaries, strict=True):
            classes[name].append(summary)
    published = published_rows(checkpoint.split.dataset, len(checkpoint.split.labeled))
    return EvaluationReport(facts, metrics, classes, means, published, folder)


def _write(report: EvaluationReport, cases: list[CaseInfo], scores: NDArray[np.float64]) -> None:
    """Write cases.csv and summary.json of scores [N, K − 1, M]."""
    protocol = report.facts["protocol"]
    with (
        atomic_write(report.folder / "cases.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["protocol", "case", "group", "class", *report.metrics])
        for case, by_class in zip(cases, scores, strict=True):
            for name, values in zip(report.classes, by_class, strict=True):
                cells = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
                writer.writerow([protocol, case.id, case.group, name, *cells])
    with atomic_write(report.folder / "summary.json") as temporary:
        text = json.dumps(report.tree(), indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
