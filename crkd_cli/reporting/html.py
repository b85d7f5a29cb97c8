"""A comparison as one self-contained page: tables, curves, scores, and pictures of cases.

The page has no scripts and loads nothing from elsewhere.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crkd_cli import __version__
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError
from crkd_cli.evaluation.results import Evaluation
from crkd_cli.inference.inferer import Inferer, build_inferer
from crkd_cli.inference.overlay import draw_overlay
from crkd_cli.inference.postprocessing import postprocess
from crkd_cli.metrics.names import format_values, metric_heading
from crkd_cli.metrics.summary import means
from crkd_cli.paths import atomic_write, output_folder
from crkd_cli.progress import Notify, Progress
from crkd_cli.reporting import figures
from crkd_cli.reporting.compare import Comparison
from crkd_cli.reporting.figures import Figure
from crkd_cli.reporting.tables import Cell, Table, tables
from crkd_cli.runtime.checkpoint import Checkpoint, load_checkpoint
from crkd_cli.text import printable

CASES_PER_GROUP = 3  # best cases, and worst cases


@dataclass(frozen=True)
class CasePicture:
    """The overlay of a case with its scores."""

    image: Figure
    scores: list[tuple[str, str]]  # (class, its scores as text)


def write_report(
    comparison: Comparison,
    folder: Path,
    root: Path,
    notify: Notify,
    progress: Progress,
    device: str | None = None,
) -> Path:
    """Write FOLDER/index.html and return its path.

    The pictures need the label maps of some cases, which are predicted again from the dataset
    under the data root `root`.

    Raises CrkdError if the checkpoint or the prepared dataset is missing or has changed since
    the evaluation.
    """
    with output_folder(folder, "--report"):
        return _write_page(comparison, folder, root, notify, progress, device)


def _write_page(
    comparison: Comparison,
    folder: Path,
    root: Path,
    notify: Notify,
    progress: Progress,
    device: str | None,
) -> Path:
    from jinja2 import Environment, StrictUndefined

    best = max(comparison.entries, key=lambda entry: np.nan_to_num(entry.mean[0].mean, nan=-1.0))
    pictures = _case_pictures(best.runs[0], root, notify, progress, device)
    environment = Environment(
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    methods = []
    for i, entry in enumerate(comparison.entries):
        methods.append((entry.name, figures.color(i), figures.is_dashed(i)))
    common = comparison.common
    page = environment.from_string(template).render(
        facts=common.facts,
        labeled=comparison.labeled,
        splits=list(dict.fromkeys(entry.runs[0].facts.split for entry in comparison.entries)),
        cases=len(common.cases),
        patients=len(set(common.groups)),
        version=__version__,
        methods=methods,
        tables=tables(comparison),
        runs=_run_table(comparison),
        curves=figures.learning_curves(comparison),
        case_scores=figures.case_scores(comparison),
        unit=comparison.unit,
        best_method=best.name,
        seed=best.runs[0].facts.seed,
        pictures=pictures,
    )
    file = folder / "index.html"
    with atomic_write(file) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return file


def _visible(value: object) -> object:
    """Escape invisible characters; the output of macros already is."""
    return printable(value) if type(value) is str else value


def _run_table(comparison: Comparison) -> Table:
    rows = []
    for entry in comparison.entries:
        for run in entry.runs:
            checkpoints = run.checkpoints if run.facts.folds else {run.checkpoint: run.facts.step}
            for checkpoint, step in checkpoints.items():
                texts = (entry.name, run.folder, checkpoint, run.facts.seed, step)
                rows.append([Cell(str(text)) for text in texts])
    return Table("runs", ["method", "evaluation", "checkpoint", "seed", "step"], 3, [rows], [])


def _case_pictures(
    run: Evaluation, root: Path, notify: Notify, progress: Progress, device: str | None
) -> dict[str, list[CasePicture]]:
    """Draw the worst and the best cases of `run` by Dice, worst and best first."""
    checkpoints = [load_checkpoint(file) for file in run.checkpoints]
    spec = checkpoints[0].spec
    store = Store(root / "prepared" / checkpoints[0].config.data.name)
    _check_unchanged(run, checkpoints, store)
    dice = means(run.scores[:, :, 0])
    defined = np.flatnonzero(~np.isnan(dice))
    ascending = [run.cases[i] for i in defined[np.argsort(dice[defined], kind="stable")]]
    groups = {}
    if worst := ascending[:CASES_PER_GROUP]:
        groups["Worst"] = worst
    if best := ascending[CASES_PER_GROUP:][-CASES_PER_GROUP:]:
        groups["Best"] = best[::-1]

    predict = _CasePredictor(run, checkpoints, store, device, notify)
    pictures: dict[str, list[CasePicture]] = {group: [] for group in groups}
    with progress("drawing", sum(map(len, groups.values())), "cases") as advance:
        for group, cases in groups.items():
            for case in cases:
                labels, reference = predict(case), np.asarray(store.native_label(case))
                spacing = store.cases[case].label_spacing_mm
                drawn = draw_overlay(store.image(case), labels, spec, spacing, case, reference)
                picture = CasePicture(_embed(drawn, case), _score_texts(run, case))
                pictures[group].append(picture)
                advance(1, case)
    return pictures


class _CasePredictor:
    """Predicts cases as the evaluation did: each by the model, ensemble or fold that scored it."""

    def __init__(
        self,
        run: Evaluation,
        checkpoints: list[Checkpoint],
        store: Store,
        device: str | None,
        notify: Notify,
    ) -> None:
        self._run, self._checkpoints, self._store = run, checkpoints, store
        self._device, self._notify = device, notify
        self._inferers: dict[int, Inferer] = {}  # by number of the fold, from 0 on

    def __call__(self, case: str) -> NDArray[Any]:
        """Return the class numbers of a case, [*S] of its label."""
        facts = self._run.facts
        k, members, rules = 0, self._checkpoints, facts.postprocessing
        for number, fold in enumerate(facts.folds):
            if case in fold.cases:
                k, members, rules = number, [self._checkpoints[number]], fold.postprocessing
        if k not in self._inferers:
            self._inferers[k] = build_inferer(
                members, self._device, self._notify, facts.protocol, tta=facts.tta
            )
        image, shape = self._store.image(case), self._store.native_label(case).shape
        labels = self._inferers[k](image, shape)
        return postprocess(labels, rules) if rules else labels


def _check_unchanged(run: Evaluation, checkpoints: list[Checkpoint], store: Store) -> None:
    """Raise CrkdError unless the checkpoints and the cases are those of the evaluation."""
    for checkpoint, step in zip(checkpoints, run.checkpoints.values(), strict=True):
        if checkpoint.step != step:
            raise CrkdError(
                f"{checkpoint.path} is at step {checkpoint.step}, but {run.folder} is of step "
                f"{step}; run crkd evaluate again"
            )
    if missing := [case for case in run.cases if case not in store.cases]:
        raise CrkdError(
            f"{store.root} lacks {len(missing)} of the evaluated cases, for example {missing[0]}; "
            "give the right --data-root"
        )


def _embed(picture: Image.Image, case: str) -> Figure:
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    text = f"{case}: the prediction's contours in color, the reference in dashed white lines"
    return Figure(case, text, source)


def _score_texts(run: Evaluation, case: str) -> list[tuple[str, str]]:
    """Return Dice and HD95 of every class of `case` as text."""
    texts = []
    headings = run.class_headings.values()
    for heading, scores in zip(headings, run.scores[run.cases.index(case)], strict=True):
        parts = []
        for metric, score in zip(run.metrics, scores, strict=True):
            if metric == "dice" or metric.startswith("hd95"):
                parts += [f"{metric_heading(metric)} {format_values(metric, float(score))[0]}"]
        texts.append((heading, ", ".join(parts)))
    return texts
