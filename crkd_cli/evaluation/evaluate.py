"""Score a model on the cases of a prepared dataset and write the results.

Legend: N cases, K classes with the background, M metrics.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
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
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.evaluation import paper
from crkd_cli.evaluation.files import FORMAT, sealed, table_bytes, table_facts, write_files
from crkd_cli.evaluation.literature import PublishedRow, published_rows
from crkd_cli.evaluation.results import evaluation_folder
from crkd_cli.evaluation.same_data import check_same_cases, check_same_dataset
from crkd_cli.evaluation.scorer import CaseScores, Labels, Scorer
from crkd_cli.inference.ensemble import load_ensemble, stored_rules
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
    same part of all their splits. Several processes share the cases; the first one writes.

    Args:
        files: Checkpoints, or run folders.
        root: The data root, with the prepared dataset under it.
        notify: Called with messages for the user.
        progress: Opens a progress bar.
        part: Default: test, or val if the split has no test cases; for the paper protocol the
            published part.
        protocol: strict or paper.
        out: Folder of the results. Default: beside the checkpoint, see
            `crkd_cli.evaluation.results.evaluation_folder`; an ensemble needs one.
        device: None or auto: the first GPU, else the CPU.
        other_data: Score even if the dataset has changed since training.
        tta: Average the predictions over flips.
        raw: Leave the checkpoint's post-processing off, as the paper protocol and ensembles do.
        overlays: Also write overlays/CASE.png with the contours of prediction and reference.

    Raises CrkdError if the checkpoint, the dataset or a case is missing, or the dataset is of
    another kind than the one that the model was trained on, and UsageError if its cases differ, if
    the checkpoints are no ensemble for them, or if the paper protocol is asked for with an ensemble
    or `tta`, which it lacks.
    """
    if tta and protocol == "paper":
        raise UsageError("the published protocol has no test-time mirroring; drop --tta")
    members = load_ensemble(files)
    checkpoint = members[0]
    if protocol == "paper":
        paper.check_published(checkpoint.spec.source)
    _check_ensemble(members, protocol, out)
    store = Store(root / "prepared" / checkpoint.config.data.name)
    check_same_dataset(checkpoint, store)
    changes = [describe_changes(member.data, store) for member in members]
    for member, change in zip(members, changes, strict=True):
        check_same_cases(member, store, change, notify, other_data=other_data)
    parts = _choose_parts(members, part, protocol, notify)
    part_name = "+".join(parts)
    cases = [store.cases[case] for case in _common_cases(members, store, parts)]
    folder = out or evaluation_folder(checkpoint.path, protocol, part_name, tta=tta, raw=raw)
    rules = () if raw or protocol == "paper" else stored_rules(members)
    if rules and "val" in parts:
        notify("post-processing was chosen on the validation cases, which inflates their scores")
    with joint_output_folder(folder, "--out", OVERLAYS):
        what = ", ".join(f"{member.path} (step {member.step})" for member in members)
        notify(f"evaluating {what} on {len(cases)} {part_name} cases, {protocol} protocol")
        notify(f"results: {folder}")

        inferer = build_inferer(members, device, notify, protocol, tta=tta)
        scorer = Scorer(checkpoint.spec.source, len(checkpoint.spec.classes), protocol, cases)
        drawn = folder / OVERLAYS if overlays else None
        scores = _score_cases(inferer, store, cases, scorer, rules, drawn, progress)
        if protocol == "strict":
            scores = _drop_absent_classes(scores)
        precision = str(inferer.precision).removeprefix("torch.")
        facts = _collect_facts(members, protocol, part_name, cases, precision)
        facts |= {"other_data": any(changes), "tta": tta}
        facts["postprocessing"] = [dump(rule) for rule in rules]
        foreground = checkpoint.spec.classes[1:]
        table = table_bytes(protocol, cases, foreground, scorer.metrics, scores)
        facts["cases_csv"] = table_facts(table, len(cases) * len(foreground))
        report = _summarize(checkpoint, facts, scorer.metrics, scores, cases, folder)
        store.check_unchanged()
        if world.rank() == 0:
            write_files(folder, report.tree(), table)
        return report


def _check_ensemble(members: Sequence[Checkpoint], protocol: Protocol, out: Path | None) -> None:
    """Raise UsageError if `members` are several, without `out` or with the paper protocol."""
    if len(members) == 1:
        return
    if protocol == "paper":
        raise UsageError(
            f"the published protocol scores single models, not an ensemble of {len(members)}; "
            "evaluate them one by one"
        )
    if out is None:
        raise UsageError(
            f"{len(members)} checkpoints are scored as one ensemble; give --out for its results, "
            "or evaluate them one by one"
        )


def _common_cases(members: Sequence[Checkpoint], store: Store, parts: Sequence[Part]) -> list[str]:
    """Return the cases in `parts` of the split, which must be the same for all members.

    A case in the same part of all splits is one that no member was trained on. Raises UsageError.
    """
    first = members[0]
    cases = _cases_in(first, store, parts)
    for other in members[1:]:
        if set(_cases_in(other, store, parts)) != set(cases):
            what = f"{'+'.join(parts)} cases"
        elif len(other.split.labeled) != len(first.split.labeled):
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
    if part == "val" and any(
        member.best and member.best["step"] == member.step for member in members
    ):
        notify("the checkpoint was selected on the validation cases, which inflates their scores")
    return (part,)


def _score_cases(
    inferer: Inferer,
    store: Store,
    cases: list[CaseInfo],
    scorer: Scorer,
    rules: Sequence[ClassRule],
    overlays: Path | None,
    progress: Progress,
) -> list[CaseScores]:
    """Return the scores of `cases`, which all processes share; draw them to `overlays`."""
    shard = world.strided_shard(cases)
    with progress("evaluating", len(shard), "cases") as advance:
        scores = list(_score_shard(inferer, store, shard, scorer, rules, overlays, advance))
    return world.gather_results(scores)


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


def _collect_facts(
    members: Sequence[Checkpoint],
    protocol: Protocol,
    part: str,
    cases: list[CaseInfo],
    precision: str,
) -> dict[str, Any]:
    """Describe the evaluation: its model, its cases and how they are scored.

    Of an ensemble, checkpoint, step, seed and configuration are those of its first member.
    """
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
        "part": part,
        "cases": len(cases),
        "method": " + ".join(methods),
        "method_sha256": checkpoint.user_method and checkpoint.user_method.sha256,
        "labeled": len(split.labeled),
        "split": split.name,
        "seed": config.train.seed,
        "checkpoint": unicode_path(checkpoint.path),
        "step": checkpoint.step,
        "members": [_member_facts(member) for member in members if len(members) > 1],
        "truth": digest((case.id, case.label_sha256) for case in cases),
        "images": digest((case.id, case.sha256) for case in cases),
        "interval": interval,
        "precision": precision,
        "trained_with": checkpoint.code_version,
        "evaluated_with": __version__,
        "config": dump(config),
    }


def _member_facts(member: Checkpoint) -> dict[str, Any]:
    path, seed = unicode_path(member.path), member.config.train.seed
    return {"checkpoint": path, "step": member.step, "seed": seed}


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
    published = published_rows(checkpoint.split.dataset, len(checkpoint.split.labeled))
    return EvaluationReport(facts, metrics, classes, means, published, folder)
