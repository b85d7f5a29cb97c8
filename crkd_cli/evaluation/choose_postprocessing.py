"""Choose the post-processing of a checkpoint on its validation cases.

Legend: K classes with the background, R candidate rules.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from crkd_cli import world
from crkd_cli.data.changes import describe_changes
from crkd_cli.data.store import Store
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.evaluation.same_data import check_same_cases, check_same_dataset
from crkd_cli.inference.inferer import Inferer, build_inferer
from crkd_cli.inference.postprocessing import process_mask
from crkd_cli.locks import lock_output, release
from crkd_cli.metrics.summary import means
from crkd_cli.pipeline import run_pipeline
from crkd_cli.progress import Notify, Progress
from crkd_cli.runtime.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from crkd_cli.runtime.class_rule import ClassRule

SHARES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)  # of the largest component
CANDIDATES = tuple(
    ClassRule(smallest_component=share, fill_holes=fill)
    for share, fill in product(SHARES, (False, True))
)
MINIMAL_GAIN = 0.001  # of Dice; less may be chance on a few cases

Labels = NDArray[Any]


@dataclass(frozen=True)
class ClassChoice:
    """The rule of a foreground class, and the mean Dice over the validation cases."""

    name: str
    rule: ClassRule
    before: float  # NaN if no validation case contains the class
    after: float


def choose_postprocessing(
    file: Path, root: Path, notify: Notify, progress: Progress, device: str | None = None
) -> tuple[Path, list[ClassChoice]]:
    """Choose a rule for each class on the validation cases and store all in the checkpoint.

    A rule is kept only where it raises the Dice of its class by at least `MINIMAL_GAIN`. Returns
    the checkpoint's file, which is replaced in one step, and the choices.

    Args:
        file: A checkpoint, or a run folder.
        root: The data root, with the prepared dataset under it.
        notify: Called with messages for the user.
        progress: Opens a progress bar.
        device: None or auto: the first GPU, else the CPU.

    Raises CrkdError if the checkpoint, the dataset or a case is missing, or if the file cannot be
    written, and UsageError if the split has no validation cases or a run is training.
    """
    if world.size() > 1:
        raise UsageError("post-processing is chosen in one process; run crkd postprocess directly")
    path = load_checkpoint(file).path
    lock = lock_output(path.parent, "CHECKPOINT", "is training in")
    try:
        checkpoint = load_checkpoint(path)  # again: a run may have written it before the lock
        store = Store(root / "prepared" / checkpoint.config.data.name)
        check_same_dataset(checkpoint, store)
        changes = describe_changes(checkpoint.data, store)
        check_same_cases(checkpoint, store, changes, notify, other_data=False)
        cases = checkpoint.split.cases(store, "val")
        if not cases:
            raise UsageError(
                f"split {checkpoint.split.name} has no validation cases to choose "
                f"post-processing on; see crkd make-splits {checkpoint.split.dataset} --help"
            )
        notify(f"checkpoint: {path} (step {checkpoint.step}); {len(cases)} validation cases")
        inferer = build_inferer([checkpoint], device, notify)
        with progress("predicting", len(cases), "cases") as advance:
            scores = []
            for case, dice in zip(cases, _score_cases(inferer, store, cases), strict=True):
                scores.append(dice)
                advance(1, case)
        choices = _choices(checkpoint, np.stack(scores))
        store.check_unchanged()
        rules = tuple(choice.rule for choice in choices)
        helpful = any(rule != ClassRule() for rule in rules)
        try:
            save_checkpoint(replace(checkpoint, postprocessing=rules if helpful else ()), path)
        except OSError as error:
            raise CrkdError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        release(lock)
    return path, choices


def _score_cases(
    inferer: Inferer, store: Store, cases: Sequence[str]
) -> Iterator[NDArray[np.float64]]:
    """Yield the Dice [R, K − 1] of every case."""

    def read(case: str) -> tuple[Labels, Labels]:
        return np.array(store.image(case)), np.array(store.native_label(case))

    def predict(loaded: tuple[Labels, Labels]) -> tuple[Labels, Labels]:
        image, truth = loaded
        return inferer(image, truth.shape), truth

    def score(predicted: tuple[Labels, Labels]) -> NDArray[np.float64]:
        return candidate_dice(*predicted, len(store.spec.classes))

    for outcome in run_pipeline(cases, read, predict, score):
        yield outcome.result()


def candidate_dice(labels: Labels, truth: Labels, classes: int) -> NDArray[np.float64]:
    """Return the Dice [R, K − 1] of every candidate; NaN where a class is in neither map.

    Voxels with the ignored value (class number K) do not count.
    """
    counts = truth != classes
    dice = np.full((len(CANDIDATES), classes - 1), np.nan)
    boxes = ndimage.find_objects(labels, classes - 1)
    for k, box in enumerate(boxes, start=1):
        size = int(np.count_nonzero(truth == k))
        if box is None:
            dice[:, k - 1] = 0.0 if size else np.nan
            continue
        mask, background = labels[box] == k, labels[box] == 0
        for r, rule in enumerate(CANDIDATES):
            processed = process_mask(mask, background, rule) & counts[box]
            total = size + int(np.count_nonzero(processed))
            common = int(np.count_nonzero(processed & (truth[box] == k)))
            dice[r, k - 1] = 2 * common / total if total else np.nan
    return dice


def _choices(checkpoint: Checkpoint, scores: NDArray[np.float64]) -> list[ClassChoice]:
    """Choose rules from the Dice [N, R, K − 1] of N cases."""
    by_candidate = means(scores, axis=0)  # [R, K − 1]
    choices = []
    for k, rule in enumerate(choose_rules(scores)):
        before = by_candidate[CANDIDATES.index(ClassRule()), k]
        after = by_candidate[CANDIDATES.index(rule), k]
        name = checkpoint.spec.class_names[k + 1]
        choices.append(ClassChoice(name, rule, float(before), float(after)))
    return choices


def choose_rules(scores: NDArray[np.float64]) -> list[ClassRule]:
    """Choose a rule per foreground class from the Dice [N, R, K − 1] of N cases."""
    rules = []
    for scores_of_class in np.moveaxis(scores, -1, 0):
        dice = dict(zip(CANDIDATES, means(scores_of_class, axis=0).tolist(), strict=True))
        best = ClassRule()
        for share in SHARES:
            rule = ClassRule(smallest_component=share)
            if dice[rule] >= dice[best] + MINIMAL_GAIN:  # False for NaN
                best = rule
        filled = ClassRule(smallest_component=best.smallest_component, fill_holes=True)
        if dice[filled] >= dice[best] + MINIMAL_GAIN:
            best = filled
        rules.append(best)
    return rules
