"""The commands as Python functions: `import crkd_cli as crkd`.

They take and return what Python programs have at hand, and are silent unless callbacks are given.
Errors are `crkd_cli.errors.CrkdError`, and `UsageError` if an argument is wrong.

Shapes: *S spatial axes, [z, y, x] or [y, x]; C channels, K classes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

from crkd_cli import world
from crkd_cli.data import make_splits as splits
from crkd_cli.data.folds import Folds, folds_file, write_folds
from crkd_cli.data.make_folds import NewFolds, make_folds
from crkd_cli.data.obtain import choose_source, obtain
from crkd_cli.data.patch_size import parse_memory
from crkd_cli.data.prepare import prepare as write_store
from crkd_cli.data.splits import Split, split_file, write_split
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError, pluralize
from crkd_cli.evaluation.evaluate import EvaluationReport
from crkd_cli.evaluation.evaluate import evaluate as score
from crkd_cli.evaluation.suggest import Suggestion as Suggestion
from crkd_cli.evaluation.suggest import Suggestions
from crkd_cli.evaluation.suggest import suggest as suggest_cases
from crkd_cli.inference.case_predictor import PredictOptions
from crkd_cli.inference.model import Model as Model
from crkd_cli.inference.model import load_model as load_model
from crkd_cli.inference.predict import PredictResult
from crkd_cli.inference.predict import predict as predict_files
from crkd_cli.locks import only_writer
from crkd_cli.methods import METHODS
from crkd_cli.paths import output_folder, resolve_data_root
from crkd_cli.progress import Advance, Notify, Progress
from crkd_cli.reporting.curves import draw_curves
from crkd_cli.runtime.device import describe
from crkd_cli.runtime.distributed import Agreement
from crkd_cli.runtime.metrics_log import write_metrics
from crkd_cli.runtime.run_folder import result_checkpoint
from crkd_cli.training import loop
from crkd_cli.training.budget import apply_budget
from crkd_cli.training.interruptions import StoppedBySignalError
from crkd_cli.training.loop import StepCallback
from crkd_cli.training.plan import Plan, Request
from crkd_cli.training.plan import plan as make_plan
from crkd_cli.training.start import start

PathLikeText = str | PathLike[str]


class TrainingResult(NamedTuple):
    """A run that is done, or stopped early on request."""

    folder: Path
    checkpoint: Path  # best.pth, or last.pth without validation cases
    metrics: dict[str, Any]  # as in metrics.json; empty if the run was finished before


def ignore(*args: Any) -> None:
    """Do nothing with what is reported."""


@contextmanager
def no_progress(title: str, total: int | None, unit: str = "it") -> Iterator[Advance]:
    """Show no progress."""
    yield lambda amount=1, note=None: None


def prepare(
    name: str,
    source: PathLikeText | None = None,
    *,
    data_root: PathLikeText | None = None,
    spacing: Sequence[float] | None = None,
    ignore_value: int | None = None,
    memory: str | None = None,
    workers: int | None = None,
    notify: Notify = ignore,
    progress: Progress = no_progress,
) -> Store:
    """Check the raw files of a dataset and prepare it for training.

    Args:
        name: A built-in dataset, or the name of your own.
        source: Folder or archive with the raw files. Default: raw/NAME in the data root.
        data_root: Default: $CRKD_DATA, else ./data.
        spacing: In mm along *S, for files that do not state it.
        ignore_value: The value of pixels that count in no loss or score.
        memory: For training, such as `8GB`; of your own data, the plan depends on it.
        workers: Processes that read the files. Default: one per core, fewer if that is faster.
        notify: Called with messages.
        progress: Opens a progress bar.

    Raises CrkdError if files are missing or wrong; its `details` name them.
    """
    root = resolve_data_root(_path(data_root))
    millimeters = None if spacing is None else ",".join(map(str, spacing))
    reader = choose_source(name, _path(source), root, millimeters, False, ignore_value)
    raw = obtain(name, reader, _path(source), root, False, progress, notify)
    budget = None if memory is None else parse_memory(memory)
    store = root / "prepared" / name
    report = write_store(name, reader, raw, store, progress, False, budget, workers)
    if report.failure is not None:
        raise report.failure
    if report.errors:
        problems = [f"{finding.where}: {finding.what}" for finding in report.errors]
        raise CrkdError(f"{pluralize(len(problems), 'problem')} in {raw}", problems)
    for finding in report.findings:
        notify(f"{finding.where}: {finding.what}")
    if new_content := str(report.new_content):
        notify(f"since the last preparation: {new_content}")
    return Store(store)


@overload
def make_splits(
    name: str,
    labeled: str | int | None = None,
    *,
    val: str | int | None = None,
    test: str | int | None = None,
    keep: str | int | PathLikeText | None = None,
    folds: None = None,
    seed: int = 1337,
    data_root: PathLikeText | None = None,
    notify: Notify = ignore,
) -> Split: ...


@overload
def make_splits(
    name: str,
    labeled: str | int | None = None,
    *,
    val: str | int | None = None,
    test: str | int | None = None,
    folds: int,
    seed: int = 1337,
    data_root: PathLikeText | None = None,
    notify: Notify = ignore,
) -> Folds: ...


def make_splits(
    name: str,
    labeled: str | int | None = None,
    *,
    val: str | int | None = None,
    test: str | int | None = None,
    keep: str | int | PathLikeText | None = None,
    folds: int | None = None,
    seed: int = 1337,
    data_root: PathLikeText | None = None,
    notify: Notify = ignore,
) -> Split | Folds:
    """Choose which patients to train, validate and test on, and keep the split in the store.

    `labeled`, `val` and `test` are numbers of patients or shares such as `10%`, and `keep` names an
    earlier split whose val and test part stay; see `crkd make-splits`. With `folds`, the result is
    that number of splits for a cross-validation.
    """
    store = Store(resolve_data_root(_path(data_root)) / "prepared" / name)
    sizes = _text(labeled), _text(val), _text(test)
    key = _text(labeled) or "all"
    new: splits.NewSplit | NewFolds
    with only_writer(store.root):
        if folds is None:
            new = splits.make_split(store, *sizes, seed, keep=_text(keep))
            result: Split | Folds = new.split
            write_split(new.split, split_file(store, key))
        else:
            new = make_folds(store, folds, *sizes, seed)
            result = new.folds
            write_folds(new.folds, folds_file(store, key))
    for note in new.notes:
        notify(note)
    return result


def train(
    dataset: str,
    labeled: str | int | None = None,
    *,
    method: str | PathLikeText = "crkd",
    settings: Mapping[str, Any] | None = None,
    config: PathLikeText | None = None,
    split: PathLikeText | None = None,
    seed: int | None = None,
    fold: int | None = None,
    budget: str | None = None,
    stop_after: int | None = None,
    device: str | None = None,
    out: PathLikeText | None = None,
    data_root: PathLikeText | None = None,
    on_step: StepCallback = ignore,
    warn: Notify = ignore,
    notify: Notify = ignore,
) -> TrainingResult:
    """Train a model; resume the run if its folder contains one with the same settings.

    Args:
        dataset: A prepared dataset.
        labeled: The number or share of labeled patients: which split to use.
        method: A method, or a Python file with one.
        settings: Override the configuration: {"train.steps": 2000}.
        config: Configuration file. Default: the one of the dataset.
        split: Split file, instead of the one for `labeled`.
        seed: As in the setting `train.seed`.
        fold: Train this fold, from 1 on, of those that `make_splits` made last for `labeled`.
        budget: Time within which the run must end, such as `1h`: it gets as many steps as fit.
        stop_after: Stop early, after so many steps, with the schedules of the full run.
        device: auto, cpu, cuda or cuda:N.
        out: Run folder. Default: runs/DATASET-METHOD-LABELED; of folds, with -folds and a subfolder
            for each.
        data_root: Default: $CRKD_DATA, else ./data.
        on_step: Called with the number of steps done and, where a line is logged, its values.
        warn: Called once for each sign that the run goes wrong.
        notify: Called with other messages.

    Raises StoppedBySignalError, a CrkdError, after Ctrl-C; everything is saved then.
    """
    name = str(method)
    if name.endswith(".py"):
        name = METHODS.add(Path(name))
    changes = dict(settings or {})
    changes |= {} if seed is None else {"train.seed": seed}
    changes |= {} if device is None else {"train.device": device}
    request = Request(
        dataset=dataset,
        labeled=_text(labeled),
        method=name,
        config=_path(config),
        split=_path(split),
        out=_path(out),
        sets=[f"{key}={json.dumps(value)}" for key, value in changes.items()],
        data_root=resolve_data_root(_path(data_root)),
        fold=fold,
        stop_after=stop_after,
    )
    if budget is not None:
        (request,) = apply_budget([request], budget, notify)
    return complete(make_plan(request), on_step, warn, notify)


def complete(plan: Plan, on_step: StepCallback, warn: Notify, notify: Notify) -> TrainingResult:
    """Train a planned run from its last checkpoint to its end, and write its summary.

    `on_step` is also called once before the first step, with the number of those done before.
    """
    if plan.finished:
        if world.rank() == 0:
            _write_missing_files(plan)
        return TrainingResult(plan.folder, result_checkpoint(plan.folder), {})
    run = start(plan)
    notify(f"device: {describe(run.device, run.precision)}")
    if not run.val:
        notify("the split has no validation cases: the last checkpoint is the result")
    if run.checkpoint.step:
        notify(f"resuming after step {run.checkpoint.step}")
    on_step(run.checkpoint.step, {})
    metrics = loop.train(run, on_step, warn, notify, partial(_write_summary, plan.folder))
    if run.signal:
        Agreement().barrier()  # process 0 has written everything before any process ends
        raise StoppedBySignalError(run.signal, plan.stop)
    return TrainingResult(plan.folder, result_checkpoint(plan.folder), metrics)


def evaluate(
    checkpoint: PathLikeText | Sequence[PathLikeText],
    *,
    part: Literal["test", "val", "fold"] | None = None,
    protocol: Literal["strict", "paper"] = "strict",
    tta: bool = False,
    raw: bool = False,
    other_data: bool = False,
    overlays: bool = False,
    out: PathLikeText | None = None,
    device: str | None = None,
    data_root: PathLikeText | None = None,
    notify: Notify = ignore,
    progress: Progress = no_progress,
) -> EvaluationReport:
    """Score a checkpoint, a run folder, or an ensemble of several, on cases of its split.

    In a folder of folds, each case is scored by the fold that held it out.

    The report's `tree()` contains all scores in plain dicts and lists. For the other arguments see
    `crkd evaluate --help`.
    """
    return score(
        _paths(checkpoint),
        resolve_data_root(_path(data_root)),
        notify,
        progress,
        part,
        protocol,
        _path(out),
        device,
        other_data=other_data,
        tta=tta,
        raw=raw,
        overlays=overlays,
    )


def predict(
    source: PathLikeText,
    checkpoint: PathLikeText | Sequence[PathLikeText],
    *,
    out: PathLikeText | None = None,
    options: PredictOptions | None = None,
    qc: bool = False,
    tta: bool = False,
    device: str | None = None,
    notify: Notify = ignore,
    progress: Progress = no_progress,
) -> PredictResult:
    """Write a mask for every image file of a file or folder.

    With `qc`, quality.csv is written too, whose rows are `quality` in the result. Files that cannot
    be read do not stop the others: see `failures`. For images that are arrays already, use
    `load_model`.
    """
    options = options or PredictOptions()
    if qc:
        options = replace(options, qc=True)
    return predict_files(
        Path(source), _paths(checkpoint), notify, progress, _path(out), device, options, tta=tta
    )


def suggest(
    name: str,
    checkpoint: PathLikeText | Sequence[PathLikeText],
    count: int = 5,
    *,
    device: str | None = None,
    data_root: PathLikeText | None = None,
    notify: Notify = ignore,
    progress: Progress = no_progress,
) -> Suggestions:
    """Name the unlabeled cases of a dataset whose labels would help most, the best one first.

    They are uncertain for the model and represent many others; see `crkd suggest --help`.
    """
    root = resolve_data_root(_path(data_root))
    return suggest_cases(name, _paths(checkpoint), root, count, notify, progress, device)


def _write_summary(folder: Path, metrics: dict[str, Any]) -> None:
    write_metrics(folder, metrics)
    draw_curves(folder)


def _write_missing_files(plan: Plan) -> None:
    """Write missing results of a finished run that was killed at its end; remove leftovers."""
    training = plan.resumed.training if plan.resumed else None
    metrics = training.get("metrics") if training else None
    with output_folder(plan.folder, "--out"):
        if metrics and not (plan.folder / "metrics.json").is_file():
            write_metrics(plan.folder, metrics)
        if not (plan.folder / "curves.png").is_file():
            draw_curves(plan.folder)


def _text(size: str | int | PathLikeText | None) -> str | None:
    return None if size is None else str(size)


def _path(given: PathLikeText | None) -> Path | None:
    return None if given is None else Path(given)


def _paths(given: PathLikeText | Sequence[PathLikeText]) -> list[Path]:
    if isinstance(given, str | PathLike):
        return [Path(given)]
    return [Path(path) for path in given]
