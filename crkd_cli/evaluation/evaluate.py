"""Score a model on the cases of a prepared dataset and write the results.

Legend: N cases, K classes with the background, M metrics.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from crkd_cli import __version__, world
from crkd_cli.config import dump
from crkd_cli.data.changes import describe_changes
from crkd_cli.data.layout import OVERLAYS
from crkd_cli.data.splits import Part
from crkd_cli.data.store import CaseInfo, Store, digest
from crkd_cli.errors import UsageError
from crkd_cli.evaluation.files import FORMAT, sealed, table_bytes, table_facts, write_files
from crkd_cli.evaluation.literature import PublishedRow, published_rows
from crkd_cli.evaluation.same_data import check_same_cases, check_same_dataset
from crkd_cli.evaluation.scorer import CaseScores, Labels, Scorer
from crkd_cli.evaluation.selection import Selection, Share, check_request, results_folder, select
from crkd_cli.inference.ensemble import load_ensemble
from crkd_cli.inference.inferer import Inferer, Protocol, build_inferer
from crkd_cli.inference.overlay import draw_overlay, write_picture
from crkd_cli.inference.postprocessing import postprocess
from crkd_cli.metrics.presence import Presence, count_absent, drop_absent_classes
from crkd_cli.metrics.summary import Interval, Summary, summarize
from crkd_cli.pipeline import run_pipeline
from crkd_cli.progress import Advance, Notify, Progress
from crkd_cli.runtime.checkpoint import Checkpoint
from crkd_cli.runtime.class_rule import ClassRule
from crkd_cli.runtime.distributed import joint_output_folder
from crkd_cli.text import unicode_path


class _Loaded(NamedTuple):
    """A case with its image [C, *S] as stored, and its native label [*S]."""

    case: CaseInfo
    image: NDArray[Any]
    truth: Labels


@dataclass(frozen=True)
class ClassReport:
    """The results of a foreground class."""

    value: int  # in the label files
    presence: Presence
    scores: list[Summary]  # one per metric

    @property
    def n(self) -> int:
        """In how many cases the class has a score."""
        return self.scores[0].n


@dataclass(frozen=True)
class EvaluationReport:
    """What was scored, how, and the results."""

    facts: dict[str, Any]  # protocol, dataset, part, checkpoint …
    metrics: tuple[str, ...]  # column names with their units: dice, hd95_mm …
    classes: dict[str, ClassReport]  # the foreground classes
    mean: list[Summary]  # over the classes, one per metric
    published: list[PublishedRow]  # for the same dataset and number of labeled cases
    folder: Path  # of cases.csv and summary.json

    def tree(self) -> dict[str, Any]:
        """Return plain dicts and lists for JSON, with None for undefined scores."""
        classes = {}
        for name, report in self.classes.items():
            classes[name] = {
                "value": report.value,
                "n": report.n,
                **asdict(report.presence),
                "scores": self._by_metric(report.scores),
            }
        tree = {
            **self.facts,
            "classes": classes,
            "mean": self._by_metric(self.mean),
            "published": msgspec.to_builtins(self.published),
        }
        return sealed(tree)

    def _by_metric(self, summaries: list[Summary]) -> dict[str, Any]:
        tree = {}
        for metric, summary in zip(self.metrics, summaries, strict=True):
            values = asdict(summary)
            tree[metric] = {
                name: None if math.isnan(value) else value for name, value in values.items()
            }
        return tree


def evaluate(
    files: Sequence[Path],
    root: Path,
    notify: Notify,
    progress: Progress,
    part: Part | None = None,
    protocol: Protocol = "strict",
    out: Path | None = None,
    device: str | None = None,
    *,
    other_data: bool = False,
    tta: bool = False,
    raw: bool = False,
    overlays: bool = False,
) -> EvaluationReport:
    """Score a checkpoint on cases of its split and write cases.csv and summary.json.

    Several checkpoints are an ensemble, whose probabilities are averaged; the cases must be in the
    same part of all their splits. The folds of a cross-validation are each scored on the cases that
    they held out, and the results are over the cases of all folds. Several processes share the
    cases; the first one writes.

    Args:
        files: Checkpoints, run folders, or a folder of folds.
        root: The data root, with the prepared dataset under it.
        notify: Called with messages for the user.
        progress: Opens a progress bar.
        part: Default: fold for folds, else test, or val if the split has no test cases; for the
            paper protocol the published part.
        protocol: strict or paper.
        out: Folder of the results. Default: beside the checkpoint, see
            `crkd_cli.evaluation.results.evaluation_folder`, or beside the folds; another ensemble
            needs one.
        device: None or auto: the first GPU, else the CPU.
        other_data: Score even if the dataset has changed since training.
        tta: Average the predictions over flips.
        raw: Leave the checkpoint's post-processing off, as the paper protocol and ensembles do.
        overlays: Also write overlays/CASE.png with the contours of prediction and reference.

    Raises CrkdError if the checkpoint, the dataset or a case is missing, or the dataset is of
    another kind than the one that the model was trained on, and UsageError if its cases differ, if
    the checkpoints are no ensemble for them or not all folds of a cross-validation, or if the paper
    protocol is asked for with several checkpoints or `tta`, which it lacks.
    """
    if tta and protocol == "paper":
        raise UsageError("the published protocol has no test-time mirroring; drop --tta")
    members = load_ensemble(files)
    check_request(members, part, protocol, out)
    checkpoint = members[0]
    store = Store(root / "prepared" / checkpoint.config.data.name)
    check_same_dataset(checkpoint, store)
    changes = [describe_changes(member.data, store) for member in members]
    for member, change in zip(members, changes, strict=True):
        check_same_cases(member, store, change, notify, other_data=other_data)
    selection = select(members, store, part, protocol, notify, raw=raw)
    cases = selection.cases
    folder = out or results_folder(selection, protocol, tta=tta, raw=raw)
    with joint_output_folder(folder, "--out", OVERLAYS):
        notify(f"evaluating {selection.describe()}, {protocol} protocol")
        notify(f"results: {folder}")

        build = partial(
            build_inferer, device=device, notify=_each_line_once(notify), protocol=protocol, tta=tta
        )
        scorer = Scorer(checkpoint.spec.source, len(checkpoint.spec.classes), protocol, cases)
        drawn = folder / OVERLAYS if overlays else None
        scores, precision = _score_cases(selection, build, store, scorer, drawn, progress)
        if protocol == "strict":
            scores = _drop_absent_classes(scores)
        facts = _collect_facts(selection, protocol, precision)
        facts |= {"other_data": any(changes), "tta": tta}
        foreground = checkpoint.spec.classes[1:]
        table = table_bytes(protocol, cases, foreground, scorer.metrics, scores)
        facts["cases_csv"] = table_facts(table, len(cases) * len(foreground))
        report = _summarize(checkpoint, facts, scorer.metrics, scores, cases, folder)
        store.check_unchanged()
        if world.rank() == 0:
            write_files(folder, report.tree(), table)
        return report


def _each_line_once(notify: Notify) -> Notify:
    """Return a function that passes on each line only once, as every fold has the same ones."""
    seen: set[str] = set()

    def notify_once(line: str) -> None:
        if line not in seen:
            seen.add(line)
            notify(line)

    return notify_once


def _score_cases(
    selection: Selection,
    build: Callable[[Sequence[Checkpoint]], Inferer],
    store: Store,
    scorer: Scorer,
    overlays: Path | None,
    progress: Progress,
) -> tuple[list[CaseScores], str]:
    """Return the scores of all cases, which all processes share, and the precision.

    The cases are drawn to `overlays`.
    """
    shards = [world.strided_shard(share.cases) for share in selection.shares]
    scores, precision = [], ""
    with progress("evaluating", sum(map(len, shards)), "cases") as advance:
        for share, shard in zip(selection.shares, shards, strict=True):
            inferer = build(share.members)
            precision = str(inferer.precision).removeprefix("torch.")
            scored = _score_shard(inferer, store, shard, scorer, share.rules, overlays, advance)
            scores += world.gather_results(list(scored))
    return scores, precision


def _drop_absent_classes(cases: list[CaseScores]) -> list[CaseScores]:
    """Set the scores of classes that no case contains to NaN."""
    scores, truth, _ = map(np.stack, zip(*cases, strict=True))
    kept = drop_absent_classes(scores, truth)
    return [case._replace(scores=scores) for case, scores in zip(cases, kept, strict=True)]


def _score_shard(
    inferer: Inferer,
    store: Store,
    cases: Sequence[CaseInfo],
    scorer: Scorer,
    rules: Sequence[ClassRule],
    overlays: Path | None,
    advance: Advance,
) -> Iterator[CaseScores]:
    """Yield the scores of every case.

    While a case is predicted, the next one is read and the previous one scored.
    """

    def read(case: CaseInfo) -> _Loaded:
        # Copied here, because a memory map does not read the file before it is used.
        return _Loaded(case, np.array(store.image(case.id)), np.array(store.native_label(case.id)))

    def predict(loaded: _Loaded) -> tuple[Labels, _Loaded]:
        return inferer(loaded.image, loaded.truth.shape), loaded

    def score(predicted: tuple[Labels, _Loaded]) -> CaseScores:
        labels, (case, image, truth) = predicted
        labels = postprocess(labels, rules) if rules else labels
        if overlays is not None:
            spacing = case.label_spacing_mm
            picture = draw_overlay(image, labels, store.spec, spacing, case.id, truth)
            write_picture(picture, overlays / f"{case.id}.png")
        return scorer(labels, truth, case)

    outcomes = run_pipeline(cases, read, predict, score)
    for case, outcome in zip(cases, outcomes, strict=True):
        yield outcome.result()
        advance(1, case.id)


def _collect_facts(selection: Selection, protocol: Protocol, precision: str) -> dict[str, Any]:
    """Describe the evaluation: its model, its cases and how they are scored.

    Of several checkpoints, the file, step, seed and configuration are those of the first one.
    """
    members, cases = selection.members, selection.cases
    checkpoint = members[0]
    config, split = checkpoint.config, checkpoint.split
    methods = dict.fromkeys(member.config.method for member in members)
    interval = "95 %, Student's t over cases"
    if protocol == "strict":
        several = len({case.group for case in cases}) < len(cases)
        interval = f"95 %, bootstrap over {'patients' if several else 'cases'}"
    return {
        "format": FORMAT,
        "protocol": protocol,
        "dataset": checkpoint.spec.name,
        "part": selection.part,
        "cases": len(cases),
        "method": " + ".join(methods),
        "method_sha256": checkpoint.user_method and checkpoint.user_method.sha256,
        "labeled": selection.labeled,
        "split": split.name if selection.is_cross_validation else split.title,
        "from_folds": split.fold is not None,
        "seed": config.train.seed,
        "checkpoint": unicode_path(checkpoint.path),
        "step": checkpoint.step,
        **_model_facts(selection),
        "truth": digest((case.id, case.label_sha256) for case in cases),
        "images": digest((case.id, case.sha256) for case in cases),
        "interval": interval,
        "precision": precision,
        "trained_with": checkpoint.code_version,
        "evaluated_with": __version__,
        "config": dump(config),
    }


def _model_facts(selection: Selection) -> dict[str, Any]:
    """Return the members of an ensemble or the folds, and the post-processing."""
    facts: dict[str, Any] = {"members": [], "folds": [], "postprocessing": []}
    if selection.is_cross_validation:
        return facts | {"folds": [_fold_facts(share) for share in selection.shares]}
    (share,) = selection.shares
    if len(share.members) > 1:
        facts["members"] = [_member_facts(member) for member in share.members]
    return facts | {"postprocessing": [dump(rule) for rule in share.rules]}


def _member_facts(member: Checkpoint) -> dict[str, Any]:
    path, seed = unicode_path(member.path), member.config.train.seed
    return {"checkpoint": path, "step": member.step, "seed": seed}


def _fold_facts(share: Share) -> dict[str, Any]:
    (fold,) = share.members
    return {
        **_member_facts(fold),
        "labeled": len(fold.split.labeled),
        "cases": [case.id for case in share.cases],
        "postprocessing": [dump(rule) for rule in share.rules],
    }


def _summarize(
    checkpoint: Checkpoint,
    facts: dict[str, Any],
    metrics: tuple[str, ...],
    results: list[CaseScores],
    cases: list[CaseInfo],
    folder: Path,
) -> EvaluationReport:
    """Summarize the results of `cases`."""
    interval: Interval = "bootstrap" if facts["protocol"] == "strict" else "t"
    groups = [case.group for case in cases]
    scores, truth, predicted = map(np.stack, zip(*results, strict=True))
    by_metric, means = [], []
    for m in range(len(metrics)):
        summaries, mean = summarize(scores[..., m], interval, groups)
        by_metric.append(summaries)
        means.append(mean)

    counts = count_absent(truth, predicted)
    classes = {}
    for k, info in enumerate(checkpoint.spec.classes[1:]):
        class_scores = [summaries[k] for summaries in by_metric]
        classes[info.name] = ClassReport(info.value, counts[k], class_scores)
    split = checkpoint.split
    published = []
    if split.fold is None:  # no published model was trained on a fold
        published = published_rows(split.dataset, len(split.labeled))
    return EvaluationReport(facts, metrics, classes, means, published, folder)
