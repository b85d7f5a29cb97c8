"""Predict a case in three steps: read its files, infer its labels, write them.

A case passes through on its own grid: `open_image` reads [C, *S] in the axes of the file, `finish`
makes of it what the store would contain, and the labels are again those of the file.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.grid import StoredImage
from crkd_cli.data.layout import OVERLAYS
from crkd_cli.data.plan import NATIVE
from crkd_cli.data.prepare_case import value_statistics
from crkd_cli.data.ranges import DataRanges, Unlike, compare_with_ranges
from crkd_cli.data.raw import formats
from crkd_cli.data.raw.formats import Volume
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError
from crkd_cli.inference.cases import Case
from crkd_cli.inference.certainty import Certainty
from crkd_cli.inference.dicom_seg import read_tags, write_segmentation
from crkd_cli.inference.inferer import Inferer
from crkd_cli.inference.label_tables import label_entries
from crkd_cli.inference.masks import MaskValues
from crkd_cli.inference.modality import check_tags, check_values
from crkd_cli.inference.overlay import draw_overlay, write_picture
from crkd_cli.inference.postprocessing import postprocess
from crkd_cli.inference.probabilities import write_probabilities
from crkd_cli.inference.quality import Row, quality_row
from crkd_cli.runtime.class_rule import ClassRule

PROBABILITIES = "probabilities"
SUBFOLDERS = (OVERLAYS, PROBABILITIES)  # of the output folder


@dataclass(frozen=True)
class PredictOptions:
    """What to write for every case."""

    overlays: bool = False  # OUT/overlays/STEM.png, with the subfolder of the image before STEM
    probabilities: bool = False  # OUT/probabilities/STEM.npz, see `write_probabilities`
    largest_component: bool = False  # keep only the largest connected component of every class
    raw: bool = False  # leave the post-processing in the checkpoint off
    overwrite: bool = False  # replace existing files instead of skipping the case
    class_numbers: bool = False  # masks contain 0 to K − 1 instead of the values of the label files
    other_modality: bool = False  # predict CT with a model for MR too, and the reverse
    dicom_seg: bool = False  # OUT/STEM.dcm: a DICOM Segmentation of every DICOM series
    qc: bool = False  # OUT/quality.csv: figures about every mask


class _Scan(NamedTuple):
    """A case and the content of its image files."""

    case: Case
    volume: Volume  # with the values of the files
    tags: list[Any]  # of the DICOM files, if a Segmentation is to be written
    unlike: Unlike | None  # in what it is unlike the training cases, if that is to be written


class _Input(NamedTuple):
    """A scan with what the network sees of it."""

    scan: _Scan
    stored: StoredImage  # normalized, on the grid of the store


class _Prediction(NamedTuple):
    """A scan with what the network predicts, without its input, which is large."""

    scan: _Scan
    labels: NDArray[Any]  # [*S] class numbers, in the axes of the file
    probabilities: NDArray[np.float16] | None  # [K, *S], if they are to be written
    certainty: Certainty | None  # if it is to be written


class CasePredictor:
    """Predicts a case in three steps, which pass on None if the case is skipped.

    Args:
        inferer: The network.
        spec: The dataset that it was trained on.
        out: Folder of the masks.
        options: What to write.
        rules: How masks are post-processed: one for each foreground class, or none.
        ranges: Those of the training cases, if they are known.
        assessed: Masks with a row in quality.csv, relative to `out`.
    """

    def __init__(
        self,
        inferer: Inferer,
        spec: DatasetSpec,
        out: Path,
        options: PredictOptions,
        rules: Sequence[ClassRule] = (),
        ranges: DataRanges | None = None,
        assessed: Collection[str] = (),
    ) -> None:
        self._inferer, self._spec, self._out, self._options = inferer, spec, out, options
        self._rules, self._ranges, self._assessed = rules, ranges, assessed
        self._source = SOURCES[spec.source]()
        self.mask_values = MaskValues(spec, class_numbers=options.class_numbers)
        self._label_entries = label_entries(self.mask_values.classes)
        self._noted: set[str] = set()  # what the user was told

    def check_targets(self, cases: Sequence[Case]) -> None:
        """Check what `cases` would write.

        Raises CrkdError if two of them would write the same file, like a.png and a.jpg, and
        UsageError if the format of a mask cannot hold the values.
        """
        owners: dict[Path, Case] = {}
        for case in cases:
            self.mask_values.check(self._targets(case)["mask"])
            for target in self._targets(case).values():
                other = owners.setdefault(target, case)
                if other != case:
                    raise CrkdError(
                        f"{other.label} and {case.title} would both write {target}; "
                        "rename one of them"
                    )

    def read(self, case: Case) -> _Input | None:
        """Read and normalize `case`. Return None if its files exist already and are kept."""
        targets = self._targets(case)
        if self._is_done(case, targets):
            return None
        if case.problem:
            raise CrkdError(case.problem)
        if not self._options.other_modality:
            check_tags(case, self._spec)
        tags = read_tags(case.series) if "segmentation" in targets else []
        volume = self._source.open_image(case.images, self._spec)
        if not self._options.other_modality:
            check_values(case, volume.array, self._spec)
        stored = self._source.finish(volume, case.image, self._spec)
        self._note_grid(case, volume)
        return _Input(_Scan(case, volume, tags, self._compare(volume, stored)), stored)

    def _is_done(self, case: Case, targets: Mapping[str, Path]) -> bool:
        """Return whether the files of `case` exist already and are kept."""
        if self._options.overwrite or not all(file.is_file() for file in targets.values()):
            return False
        return not self._options.qc or str(case.mask) in self._assessed

    def _compare(self, volume: Volume, stored: StoredImage) -> Unlike | None:
        """Say in what an image is unlike the training cases, if that is to be written."""
        if not self._options.qc or self._ranges is None:
            return None
        statistics = value_statistics(volume.array, self._spec)
        size, spacing = stored.native_size, stored.native_spacing_mm
        return compare_with_ranges(self._ranges, size, spacing, statistics, self._spec)

    def _note_grid(self, case: Case, volume: Volume) -> None:
        """Tell the user that channels are resampled, or that an orientation is assumed."""
        if volume.is_resampled:
            self._note_once(case, "channels are resampled to the grid of the first one")
        plan = self._spec.plan
        if plan is None or volume.array.ndim == 3 or plan.orientation == NATIVE:
            return
        if volume.geometry is None or volume.geometry.orientation is None:
            self._note_once(case, f"the orientation is not stated, assumed: {plan.orientation}")

    def _note_once(self, case: Case, text: str) -> None:
        """Tell the user `text` about `case`, unless it was said of another one."""
        if text not in self._noted:
            self._noted.add(text)
            self._inferer.notify(f"note: {case.title}: {text}")

    def infer(self, loaded: _Input | None) -> _Prediction | None:
        """Predict the labels and, if they are to be written, the probabilities."""
        if loaded is None:
            return None
        scan, stored = loaded
        dtype = np.float16 if self._options.probabilities else None
        labels, probabilities, certainty = self._inferer.infer(
            stored.array, stored.native_size, dtype
        )
        if probabilities is not None:
            probabilities = stored.turn.undo(probabilities)
        return _Prediction(scan, stored.turn.undo(labels), probabilities, certainty)

    def write(self, prediction: _Prediction | None) -> Row | None:
        """Write the files of the case, and return its row of quality.csv; empty without `qc`.

        Return None if it was skipped.
        """
        if prediction is None:
            return None
        scan, labels, probabilities, certainty = prediction
        case, volume = scan.case, scan.volume
        targets = self._targets(case)
        if self._rules:
            labels = postprocess(labels, self._rules)
        if probabilities is not None:
            classes = self.mask_values.classes
            write_probabilities(targets["probabilities"], probabilities, classes, volume)
        if "overlay" in targets:
            self._write_overlay(targets["overlay"], scan, labels)
        if "segmentation" in targets:
            names = self._spec.class_names
            write_segmentation(targets["segmentation"], labels, names, volume, scan.tags)
        values = self.mask_values.encode(labels)
        formats.write_label(targets["mask"], values, volume, self._label_entries)
        if certainty is None:
            return {}
        names = self._spec.class_names[1:]
        return quality_row(str(case.mask), labels, volume.spacing_mm, names, certainty, scan.unlike)

    def _write_overlay(self, target: Path, scan: _Scan, labels: NDArray[Any]) -> None:
        image, spacing, title = scan.volume.array, scan.volume.spacing_mm, scan.case.title
        write_picture(draw_overlay(image, labels, self._spec, spacing, title), target)

    def _targets(self, case: Case) -> dict[str, Path]:
        """Return the files to write for `case`. The mask is last, so it marks the others done."""
        targets = {}
        if self._options.overlays:
            targets["overlay"] = self._out / OVERLAYS / f"{case.name}.png"
        if self._options.probabilities:
            targets["probabilities"] = self._out / PROBABILITIES / f"{case.name}.npz"
        if self._options.dicom_seg and case.series:
            targets["segmentation"] = self._out / f"{case.name}.dcm"
        targets["mask"] = self._out / case.mask
        return targets
