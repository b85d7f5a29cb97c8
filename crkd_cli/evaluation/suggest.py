"""Suggest which unlabeled cases to label next: uncertain ones that represent many others.

The method is suggestive annotation (Yang et al., "Suggestive Annotation: A Deep Active Learning
Framework for Biomedical Image Segmentation", MICCAI 2017, arXiv:1706.04737): of the most uncertain
images, those are chosen that together represent all unlabeled images best. Yang et al. measure
uncertainty by the variance of several networks. Here it is the entropy of the predicted
probabilities, so that one checkpoint is enough; it is the best measure of uncertainty in the
benchmark of Lüth et al. (nnActive, TMLR 2025).

Legend: N unlabeled cases, P of them in the pool of the most uncertain, F features.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli import world
from crkd_cli.data.changes import describe_changes
from crkd_cli.data.splits import Part
from crkd_cli.data.store import CaseInfo, Store
from crkd_cli.errors import CrkdError, UsageError, pluralize
from crkd_cli.evaluation.same_data import check_same_dataset
from crkd_cli.inference.ensemble import load_ensemble
from crkd_cli.inference.features import DeepFeatures
from crkd_cli.inference.inferer import Inferer, build_inferer
from crkd_cli.pipeline import run_pipeline
from crkd_cli.progress import Advance, Notify, Progress
from crkd_cli.runtime.checkpoint import Checkpoint

HELD_OUT: tuple[Part, ...] = ("val", "test", "fold")
POOL = 2  # uncertain cases per suggestion to choose from, as Yang et al.: 16 for 8

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Suggestion:
    """A case to label."""

    case: str
    patient: str
    file: str  # the image, relative to the folder that the dataset was prepared from
    uncertainty: float  # entropy relative to the size of the prediction: see `relative_entropy`
    represents: tuple[str, ...]  # unlabeled cases that resemble it more than other suggestions


@dataclass(frozen=True)
class Suggestions:
    """Cases to label, the most helpful one first."""

    dataset: str
    unlabeled: int  # cases that were compared
    labels_exist: bool  # but were not used for training
    cases: tuple[Suggestion, ...]

    def tree(self) -> dict[str, Any]:
        """Return plain dicts and lists for JSON."""
        return asdict(self)


def suggest(
    name: str,
    files: Sequence[Path],
    root: Path,
    count: int,
    notify: Notify,
    progress: Progress,
    device: str | None = None,
) -> Suggestions:
    """Suggest `count` unlabeled cases of a dataset, of different patients, to label next.

    Cases of patients in the validation or test part are never suggested. If all cases have labels,
    as in a public dataset, those are suggested whose labels were not used for training.

    Args:
        name: A prepared dataset.
        files: A checkpoint that was trained on it or a run folder; several are an ensemble.
        root: The data root, with the prepared dataset under it.
        count: How many; all if there are fewer.
        notify: Called with messages for the user.
        progress: Opens a progress bar.
        device: None or auto: the first GPU, else the CPU.

    Raises CrkdError if the dataset or a checkpoint is missing, or if there is no case to suggest,
    and UsageError if a checkpoint was trained on another dataset.
    """
    if world.size() > 1:
        raise UsageError("cases are suggested in one process; run crkd suggest directly")
    if count < 1:
        raise UsageError(f"the number of cases to suggest is {count}; give at least 1")
    store = Store(root / "prepared" / name)
    members = load_ensemble(files)
    for member in members:
        _check_dataset(member, store, notify)
    cases = unlabeled_cases(members, store, notify)
    patients = len({case.group for case in cases})
    if patients < count:
        what = "case" if patients == len(cases) else "patient"
        notify(f"only {pluralize(patients, what)} can be suggested, not {count}")
    inferer = build_inferer(members, device, notify)
    with progress("predicting", len(cases), "cases") as advance:
        uncertainty, features = _describe_cases(inferer, store, cases, advance)
    store.check_unchanged()
    chosen = choose(uncertainty, features, [case.group for case in cases], count)
    nearest = np.argmax(features[chosen] @ features.T, axis=0)  # [N]
    represented: list[list[str]] = [[] for _ in chosen]
    for index, rank in enumerate(nearest):
        if index not in chosen:
            represented[rank].append(cases[index].id)
    suggestions = [
        Suggestion(
            case=cases[index].id,
            patient=cases[index].group,
            file=cases[index].source,
            uncertainty=float(uncertainty[index]),
            represents=tuple(names),
        )
        for index, names in zip(chosen, represented, strict=True)
    ]
    return Suggestions(name, len(cases), cases[0].labeled, tuple(suggestions))


def _check_dataset(checkpoint: Checkpoint, store: Store, notify: Notify) -> None:
    """Raise an error unless the checkpoint was trained on the dataset, which may have grown."""
    trained_on, name = checkpoint.config.data.name, store.root.name
    if trained_on != name:
        raise UsageError(
            f"{checkpoint.path} was trained on {trained_on}, not on {name}; give a checkpoint of "
            f"{name}, or run: crkd suggest {trained_on}"
        )
    check_same_dataset(checkpoint, store)
    if changes := describe_changes(checkpoint.data, store):
        notify(f"{store.root} has changed since {checkpoint.path} was trained on it: {changes}")


def unlabeled_cases(
    members: Sequence[Checkpoint], store: Store, notify: Notify
) -> tuple[CaseInfo, ...]:
    """Return the cases that can be suggested, sorted by name. Raises CrkdError if there is none.

    Labels for more cases of a patient who validates, tests or is held out by a fold would change
    what earlier models were scored on.
    """
    held_out = {
        group for member in members for part in HELD_OUT for group in member.split.groups_of(part)
    }
    cases = sorted(store.index.cases, key=lambda case: case.id)
    cases = [case for case in cases if case.group not in held_out]
    without_label = tuple(case for case in cases if not case.labeled)
    if without_label:
        return without_label
    unused = set.intersection(*(set(member.split.unlabeled) for member in members))
    not_used = tuple(case for case in cases if case.group in unused)
    if not not_used:
        raise CrkdError(
            f"{store.root} has no unlabeled case to suggest: all have a label, or are in the "
            f"validation or test part; add images and run: crkd prepare-data {store.root.name}"
        )
    notify(
        "every case has a label: suggesting those whose labels were not used for training "
        f"({len(not_used)} in split {members[0].split.name})"
    )
    return not_used


def _describe_cases(
    inferer: Inferer, store: Store, cases: Sequence[CaseInfo], advance: Advance
) -> tuple[Values, Values]:
    """Return the uncertainty [N] and the features [N, F], of length 1, of all cases."""
    deep_features = DeepFeatures(inferer.networks)
    entropy, foreground, features = [], [], []

    def predict(image: NDArray[Any]) -> tuple[float, int, Values]:
        return *inferer.sum_entropy(image), deep_features.take()

    def read(case: CaseInfo) -> NDArray[Any]:
        return np.array(store.image(case.id))  # a memory map does not read the file before its use

    for case, outcome in zip(
        cases, run_pipeline(cases, read, predict, lambda result: result), strict=True
    ):
        total, size, means = outcome.result()
        entropy.append(total)
        foreground.append(size)
        features.append(means)
        advance(1, case.id)
    stacked = np.stack(features)
    lengths = np.linalg.norm(stacked, axis=1, keepdims=True).clip(min=1e-12)
    return relative_entropy(np.array(entropy), np.array(foreground)), stacked / lengths


def relative_entropy(entropy: Values, foreground: NDArray[np.int_]) -> Values:
    """Return the entropy [N] of the predictions relative to their size.

    A mean over all voxels would be the higher, the larger the organ or the closer the crop (see
    Kahl et al., "ValUES", ICLR 2024). Hence the sum is divided by the voxels of the predicted
    foreground: at least a tenth of their mean over the cases, as a prediction may be empty.
    """
    floor = max(foreground.mean() / 10, 1.0)
    return np.asarray(entropy / np.maximum(foreground, floor))


def choose(uncertainty: Values, features: Values, patients: Sequence[str], count: int) -> list[int]:
    """Choose `count` of N cases, or one for each patient if there are fewer patients.

    The pool are the P = 2 · count most uncertain cases of different patients. From these, the case
    is chosen again and again that raises the representativeness of the chosen ones most:
    Σⱼ maxᵢ sim(i, j), over all cases j and chosen cases i, where sim is the cosine similarity (Yang
    et al., 2017, section 2.3). Of equal cases, the first is chosen.

    Args:
        uncertainty: [N].
        features: [N, F], of length 1.
        patients: The patient of each case.
        count: At least 1.
    """
    pool: dict[str, int] = {}
    for index in np.argsort(-uncertainty, kind="stable"):
        if len(pool) < POOL * count:
            pool.setdefault(patients[index], int(index))
    candidates = sorted(pool.values())
    similarity = features[candidates] @ features.T  # [P, N]
    covered = np.full(len(features), -1.0)  # the least similarity
    chosen: list[int] = []
    remaining = list(range(len(candidates)))
    while remaining and len(chosen) < count:
        totals = np.maximum(similarity[remaining], covered).sum(1)
        best = remaining.pop(int(np.argmax(totals)))
        covered = np.maximum(covered, similarity[best])
        chosen.append(candidates[best])
    return chosen
