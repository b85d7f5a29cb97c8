"""Predict masks for image files, with the same names, formats, sizes and geometry."""

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from crkd_cli import world
from crkd_cli.errors import CrkdError, UsageError, pluralize
from crkd_cli.inference.case_predictor import SUBFOLDERS, CasePredictor, PredictOptions
from crkd_cli.inference.cases import Case, find_cases, output_folder
from crkd_cli.inference.dicom_seg import check_segmentations
from crkd_cli.inference.ensemble import load_ensemble, stored_rules
from crkd_cli.inference.inferer import build_inferer
from crkd_cli.inference.label_tables import write_label_tables
from crkd_cli.inference.quality import Row, read_quality, write_quality
from crkd_cli.paths import DiskFullError
from crkd_cli.pipeline import run_pipeline
from crkd_cli.progress import Notify, Progress
from crkd_cli.runtime.checkpoint import Checkpoint
from crkd_cli.runtime.class_rule import ClassRule
from crkd_cli.runtime.distributed import joint_output_folder


@dataclass(frozen=True)
class PredictResult:
    """How many cases were predicted, skipped and failed, and what the masks contain."""

    folder: Path
    written: int
    skipped: int
    failures: list[str]  # one line each
    classes: tuple[tuple[int, str], ...]  # the value in masks and the name of every class
    # The rows of quality.csv as text by column, the least confident mask first; empty without `qc`.
    quality: Sequence[Row] = ()


def predict(
    source: Path,
    checkpoints: Sequence[Path],
    notify: Notify,
    progress: Progress,
    out: Path | None = None,
    device: str | None = None,
    options: PredictOptions | None = None,
    *,
    tta: bool = False,
) -> PredictResult:
    """Predict a mask for the image `source`, or for every case in the folder `source`.

    The probabilities of several `checkpoints` are averaged; see `load_ensemble`.
    Masks are written to `out` (default: FOLDER-masks), in the same subfolders as the images, and
    those of volumes with label tables for viewers (see `write_label_tables`). A case
    that cannot be read is listed in the result and does not stop the others; a full disk does.
    Several processes share the cases. While a case is predicted, the next one is read and the
    masks of the previous one are written. With `tta`, predictions are averaged over flips. With
    `options.qc`, quality.csv gets a row for each mask, see `quality_row`.

    Raises CrkdError if there is no image or no checkpoint, or if the output is not writable, and
    UsageError if the checkpoints do not fit together, if the output would replace the images, if a
    format cannot hold the values, or if DICOM Segmentations cannot be written.
    """
    options = options or PredictOptions()
    out = output_folder(source, out)
    members = load_ensemble(checkpoints)
    spec = members[0].spec
    cases = find_cases(source, out, spec, notify)
    if options.dicom_seg:
        check_segmentations(len(spec.classes))
        if not any(case.series for case in cases):
            raise UsageError(f"{source} contains no DICOM series; drop --dicom-seg")
    places = {case.mask.parent for case in cases}
    subfolders = [str(Path(part, place)) for part in ("", *SUBFOLDERS) for place in places]
    with joint_output_folder(out, "--out", *subfolders):
        notify(f"masks: {out}")
        names = spec.class_names[1:]
        kept = read_quality(out, names) if options.qc and not options.overwrite else {}
        inferer = build_inferer(members, device, notify, tta=tta, certainty=options.qc)
        rules = _choose_rules(members, options)
        predictor = CasePredictor(inferer, spec, out, options, rules, members[0].ranges, kept)
        predictor.check_targets(cases)
        rows = dict(kept)
        try:
            result = _predict(cases, predictor, out, progress, rows)
        except BaseException:
            if options.qc and world.rank() == 0:  # the next run continues from there
                with suppress(CrkdError):
                    write_quality(out, rows.values(), names)
            raise
        if world.rank() == 0:
            if spec.dims == 3 and result.written:
                write_label_tables(out, result.classes)
            if options.qc:
                result = replace(result, quality=write_quality(out, rows.values(), names))
        return result


def _choose_rules(members: Sequence[Checkpoint], options: PredictOptions) -> tuple[ClassRule, ...]:
    """Return how masks are post-processed: a rule per foreground class, or none."""
    if options.largest_component:
        return (ClassRule(smallest_component=1.0),) * (len(members[0].spec.classes) - 1)
    return () if options.raw else stored_rules(members)


def _predict(
    cases: Sequence[Case],
    predictor: CasePredictor,
    out: Path,
    progress: Progress,
    rows: dict[str, Row],
) -> PredictResult:
    """Predict `cases`, and add the quality of their masks to `rows`."""
    shard = world.strided_shard(cases)
    results: list[Row | str | None] = []  # per case: written, an error, or skipped
    pipeline = run_pipeline(shard, predictor.read, predictor.infer, predictor.write)
    # Closing waits for the case that is being written, before the folder is given up.
    with progress("predicting", len(shard), "images") as advance, closing(pipeline) as outcomes:
        for case, outcome in zip(shard, outcomes, strict=True):
            try:
                result = _written_or_error(outcome, case)
                results.append(result)
                if isinstance(result, dict) and result:
                    rows[str(case.mask)] = result
            except DiskFullError as error:
                images = f"{_count_written(results)} of {pluralize(len(shard), 'image')}"
                raise DiskFullError(
                    f"{error}; {images} written: free some space and rerun the same command"
                ) from None
            advance(1, case.title)
    results = world.gather_results(results)
    failures = [result for result in results if isinstance(result, str)]
    rows |= {row["mask"]: row for row in results if isinstance(row, dict) and row}
    written, skipped = _count_written(results), results.count(None)
    return PredictResult(out, written, skipped, failures, predictor.mask_values.classes)


def _count_written(results: Sequence[Row | str | None]) -> int:
    return sum(isinstance(result, dict) for result in results)


def _written_or_error(outcome: Future[Row | None], case: Case) -> Row | str | None:
    """Return the row of `case`, None if it was skipped, or the error if it could not be written.

    Raises DiskFullError, because the other cases could not be written either.
    """
    try:
        return outcome.result()
    except DiskFullError:
        raise
    except CrkdError as error:
        message = str(error)
        return message if case.label in message else f"{case.label}: {message}"
