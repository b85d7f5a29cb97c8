"""From image files to mask files: same names, formats, sizes and geometry."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from crkd_cli import world
from crkd_cli.data.raw import files
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.base import images_in
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.inference import overlay
from crkd_cli.inference.inferer import Inferer, build_inferer
from crkd_cli.paths import atomic_write, create_output_folder
from crkd_cli.progress import Notify, Progress
from crkd_cli.runtime.checkpoint import load_checkpoint


@dataclass(frozen=True)
class PredictOptions:
    """What is written for every image."""

    overlays: bool = False  # OUT/overlays/STEM.png
    probabilities: bool = False  # OUT/probabilities/STEM.npy: [K, *S] float32, axes as in the mask
    largest_component: bool = False  # keep only the largest connected part of every class
    overwrite: bool = False  # also what is there already


@dataclass(frozen=True)
class PredictResult:
    folder: Path
    written: int
    skipped: int
    failures: list[str]  # one line each


def predict(
    source: Path,
    checkpoint: Path,
    notify: Notify,
    progress: Progress,
    out: Path | None = None,
    device: str | None = None,
    wanted: PredictOptions | None = None,
) -> PredictResult:
    """Masks of the image `source`, or of all images in the folder `source`, into `out` (default: FOLDER-masks).

    A file that cannot be read is noted in the outcome and does not stop the others. Several processes share the images.
    Raises CrkdError: no image, no checkpoint, output not writable; UsageError: the output would replace the images.
    """
    wanted = wanted or PredictOptions()
    folder = (source if source.is_dir() else source.parent).resolve()
    if out is None and not folder.name:
        raise UsageError(f"there is no place for masks beside {folder}; give one with --out")
    out = out or folder.with_name(f"{folder.name}-masks")
    if out.resolve() == folder:
        raise UsageError(
            f"--out {out} is the images' own folder, and masks keep their names; give another"
        )
    images = _images(source)
    loaded = load_checkpoint(checkpoint)
    if loaded.path != checkpoint:
        notify(f"checkpoint: {loaded.path}")  # of the run folder that was given
    create_output_folder(out, "--out")
    notify(f"masks: {out}")
    job = _Job(build_inferer(loaded, device, notify), loaded.spec, out, wanted)
    job.check(images)
    own = world.strided_shard(images)
    results: list[bool | str] = []  # of every image: written, there already, or what failed
    with progress("predicting", len(own), "images") as advance:
        for image in own:
            if not wanted.overwrite and all(file.is_file() for file in job.targets(image)):
                results.append(False)
            else:
                try:
                    job.run(image)
                    results.append(True)
                except CrkdError as error:
                    results.append(str(error) if str(image) in str(error) else f"{image}: {error}")
            advance(1, image.name)
    results = world.gather_results(results)
    failures = [result for result in results if isinstance(result, str)]
    return PredictResult(out, results.count(True), results.count(False), failures)


class _Job:
    """One image at a time."""

    def __init__(
        self, inferer: Inferer, spec: DatasetSpec, out: Path, wanted: PredictOptions
    ) -> None:
        self._inferer, self._spec, self._out, self._wanted = inferer, spec, out, wanted
        self._source = SOURCES[spec.source]()

    def targets(self, image: Path) -> list[Path]:
        """All files that are written for `image`, the mask last: it is there only when the others are."""
        name = files.stem(image)
        return [
            *([self._out / "overlays" / f"{name}.png"] if self._wanted.overlays else []),
            *([self._out / "probabilities" / f"{name}.npy"] if self._wanted.probabilities else []),
            self._out / files.label_name(image),
        ]

    def check(self, images: Sequence[Path]) -> None:
        """Raises CrkdError if two images would write one file: a.png and a.jpg, say."""
        owners: dict[Path, Path] = {}
        for image in images:
            for target in self.targets(image):
                if (other := owners.setdefault(target, image)) != image:
                    raise CrkdError(
                        f"{other} and {image.name} would both write {target}; rename one of them"
                    )

    def run(self, image: Path) -> None:
        volume = self._source.read_image(image, self._spec)
        labels, probabilities = self._infer(volume.array, volume.size)
        *others, mask = self.targets(image)
        for target in others:
            with atomic_write(target) as temporary:
                if target.suffix == ".npy":
                    np.save(temporary, probabilities, allow_pickle=False)
                else:
                    raw = files.read_image(
                        image, self._spec.z_last
                    )  # the values and the size of the file
                    picture = overlay.draw_overlay(
                        raw.array, labels, self._spec, volume.spacing_mm, image.name
                    )
                    picture.save(temporary, format="PNG")
        files.write_label(mask, labels, volume)

    def _infer(
        self, array: NDArray[np.generic], size: tuple[int, ...]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Labels [*size] and, where they are wanted, probabilities [K, *size]."""
        if self._wanted.probabilities:
            probabilities = self._inferer.probabilities(array, size)
            labels = probabilities.argmax(0).astype(np.uint8)
        else:
            probabilities = np.empty(0, np.float32)
            labels = self._inferer(array, size)
        return (
            largest_components(labels) if self._wanted.largest_component else labels
        ), probabilities


def largest_components(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`labels` [*S] with every class cut down to its largest part connected over faces; the rest is background."""
    kept = np.zeros_like(labels)
    for k in np.unique(labels[labels > 0]):
        parts, count = ndimage.label(labels == k)
        if count:
            kept[parts == 1 + np.bincount(parts.ravel())[1:].argmax()] = k
    return kept


def _images(source: Path) -> list[Path]:
    """The images to predict. Raises CrkdError if there is none."""
    if not source.exists():
        raise CrkdError(f"{source} does not exist; give an image or a folder of images")
    if not source.is_dir():
        return [source]
    images = images_in(source)
    if not images:
        raise CrkdError(
            f"{source} holds no image; formats: {', '.join(files.SUFFIXES)} (subfolders are not searched)"
        )
    return images
