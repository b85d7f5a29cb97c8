"""Scores of a model on cases of a prepared store, and the files that report them.

Legend: N cases, K classes with the background, M metrics, *S spatial axes.
"""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from crkd_cli.metrics.summary import Summary, summarize
from crkd_cli.metrics.surface import surface
from crkd_cli.paths import atomic_write, create_output_folder
from crkd_cli.progress import Advance, Notify, Progress
from crkd_cli.runtime.checkpoint import Checkpoint, load_checkpoint

TOLERANCE = 2.0  # of nsd, in mm or px


@dataclass(frozen=True)
class EvaluationReport:
    """What was scored and how, and what came out."""

    facts: dict[str, Any]  # protocol, data set, part, checkpoint …
    metrics: tuple[str, ...]  # column names with their units: dice, hd95_mm …
    classes: dict[str, list[Summary]]  # of every foreground class, one per metric
    mean: list[Summary]  # over the classes, one per metric
    published: list[PublishedRow]  # of the same data set and label count
    folder: Path  # where cases.csv and summary.json are

    def tree(self) -> dict[str, Any]:
        """As plain dicts and lists for JSON; None for what is undefined."""
        by_class = {name: self._named(summaries) for name, summaries in self.classes.items()}
        rows = msgspec.to_builtins(self.published)
        return {
            **self.facts,
            "classes": by_class,
            "mean": self._named(self.mean),
            "published": rows,
        }

    def _named(self, summaries: list[Summary]) -> dict[str, Any]:
        plain = [{key: _plain(value) for key, value in asdict(one).items()} for one in summaries]
        return dict(zip(self.metrics, plain, strict=True))


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
    """Scores the checkpoint `file` on its split's cases in the store under the data root `root`.

    part: default test, else val; paper: the published part. Writes cases.csv and summary.json to `out`, by default
    beside the checkpoint (evaluation.folder_of). Several processes share the cases; the first one writes.
    Raises CrkdError: no checkpoint, store missing or of another kind, cases missing.
    """
    checkpoint = load_checkpoint(file)
    file = checkpoint.path  # of a run folder: its best.pth, else its last.pth
    spec, split = checkpoint.spec, checkpoint.split
    if protocol == "paper":
        paper.check(spec.source)
    store = Store(root / "prepared" / checkpoint.config.data.name)
    _same_kind(checkpoint, store)
    parts = _parts(checkpoint, part, protocol, notify)
    cases = [store.cases[case] for one in parts for case in split.cases(store, one)]
    folder = out or evaluation_folder(file, protocol, "+".join(parts))
    create_output_folder(folder, "--out")
    notify(
        f"evaluating {file} (step {checkpoint.step}) on {len(cases)} {'+'.join(parts)} cases, {protocol} protocol"
    )
    notify(f"results: {folder}")
    inferer = build_inferer(checkpoint, device, notify, protocol)
    scorer = Scorer(spec.source, len(spec.classes), protocol, cases)
    own = world.strided_shard(cases)
    with progress("evaluating", len(own), "cases") as advance:
        scores = np.stack(world.gather_results([*_scores(inferer, store, own, scorer, advance)]))
    groups = [case.group for case in cases]
    over = "cases" if len(set(groups)) == len(groups) else "patients"
    facts = {
        "protocol": protocol,
        "dataset": spec.name,
        "part": "+".join(parts),
        "cases": len(cases),
        "method": checkpoint.config.method,
        "method_sha256": checkpoint.user_method and checkpoint.user_method.sha256,
        "labeled": len(split.labeled),
        "split": split.name,
        "seed": checkpoint.config.train.seed,
        "checkpoint": str(file),
        "step": checkpoint.step,
        "truth": digest((case.id, case.label_sha256) for case in cases),
        "interval": f"95 %, bootstrap over {over}"
        if protocol == "strict"
        else "95 %, Student's t over cases",
        "precision": str(inferer.precision).removeprefix("torch."),
        "trained_with": checkpoint.code_version,
        "evaluated_with": __version__,
        "config": dump(checkpoint.config),
    }
    columns = [
        summarize(one, "bootstrap" if protocol == "strict" else "t", groups)
        for one in np.moveaxis(scores, 2, 0)
    ]
    by_class = {
        name: [column[0][k] for column in columns] for k, name in enumerate(spec.classes[1:])
    }
    rows = published_rows(split.dataset, len(split.labeled))
    report = EvaluationReport(
        facts, scorer.metrics, by_class, [column[1] for column in columns], rows, folder
    )
    if world.rank() == 0:
        _write(report, cases, scores)
    return report


class Scorer:
    """All metrics of a case. Distances are in mm if the spacing of every case is known, else in px; paper: in px."""

    def __init__(
        self, source: str, classes: int, protocol: Protocol, cases: Sequence[CaseInfo]
    ) -> None:
        self._source, self._classes, self._protocol = source, classes, protocol
        # The spacing is that of the stored image, so it does not hold at another native size.
        in_mm = protocol == "strict" and all(
            case.spacing_mm and not case.native_shape for case in cases
        )
        self._unit = "mm" if in_mm else "px"
        distances = (
            ("hd95_", "asd_")
            if protocol == "paper"
            else ("hd95_", "assd_", "asd_", f"nsd_{TOLERANCE:g}")
        )
        self.metrics = ("dice", "jaccard", *(name + self._unit for name in distances))

    def __call__(
        self, labels: NDArray[np.uint8], truth: NDArray[np.uint8], case: CaseInfo
    ) -> NDArray[np.float64]:
        """Scores [K − 1, M] of `labels` [*S] against `truth` [*S]; NaN where undefined."""
        masks = [(labels == k, truth == k) for k in range(1, self._classes)]
        if self._protocol == "paper":
            return np.stack([paper.scores(*pair, self._source) for pair in masks])
        spacing = case.spacing_mm if self._unit == "mm" and case.spacing_mm else (1.0,) * truth.ndim
        voxels = confusion(labels, truth, self._classes)
        overlap = np.stack([dice(voxels)[1:], jaccard(voxels)[1:]], axis=1)
        return np.hstack([overlap, [surface(*pair, spacing, TOLERANCE) for pair in masks]])


def _scores(
    inferer: Inferer, store: Store, cases: Sequence[CaseInfo], scorer: Scorer, advance: Advance
) -> Iterator[NDArray[np.float64]]:
    """Scores [K − 1, M] of every case, in order: one is scored in a thread while the next is inferred."""
    with ThreadPoolExecutor(1, thread_name_prefix="score") as pool:
        waiting = None
        for case in cases:
            truth = store.native_label(case.id)
            labels = inferer(store.image(case.id), truth.shape)
            if waiting is not None:
                yield waiting.result()
                advance(1, case.id)
            waiting = pool.submit(scorer, labels, np.asarray(truth), case)
        if waiting is not None:
            yield waiting.result()
            advance(1, "")


def _same_kind(checkpoint: Checkpoint, store: Store) -> None:
    was, now = checkpoint.spec, store.spec
    for name in ("source", "classes", "channels", "dims", "intensity", "stored_size", "z_last"):
        if getattr(was, name) != getattr(now, name):
            raise CrkdError(
                f"{store.root} is not the data set that {checkpoint.path} was trained on: {name} is "
                f"{getattr(now, name)} there and was {getattr(was, name)}; give the right --data-root"
            )


def _parts(
    checkpoint: Checkpoint, part: Part | None, protocol: Protocol, notify: Notify
) -> tuple[Part, ...]:
    """The parts of the split to score together: one, or the two that the paper protocol scores as one."""
    split = checkpoint.split
    if part is None and protocol == "paper" and checkpoint.spec.source in paper.TOGETHER:
        forward_concat = tuple(
            one for one in paper.TOGETHER[checkpoint.spec.source] if getattr(split, one)
        )
        if forward_concat:
            return forward_concat
    if part is None and not split.test and split.val:
        notify(f"split {split.name} has no test cases: scoring the validation cases")
    chosen: Part = part or ("test" if split.test or not split.val else "val")
    if not getattr(split, chosen):
        there = [name for name in ("val", "test") if getattr(split, name)]
        advice = (
            f"give --part {there[0]}"
            if there
            else f"make one that has: crkd make-splits {split.dataset} --help"
        )
        raise CrkdError(f"split {split.name} has no {chosen} cases; {advice}")
    if (
        chosen == "val"
        and checkpoint.best is not None
        and checkpoint.best["step"] == checkpoint.step
    ):
        notify(
            "the validation cases chose the checkpoint: their scores are better than those of unseen cases"
        )
    return (chosen,)


def _write(report: EvaluationReport, cases: list[CaseInfo], scores: NDArray[np.float64]) -> None:
    """cases.csv and summary.json of `scores` [N, K − 1, M]."""
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
        temporary.write_text(
            json.dumps(report.tree(), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
