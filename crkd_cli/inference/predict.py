"""Predict masks for image files, with the same names, formats, sizes and geometry."""

import re
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from crkd_cli import world
from crkd_cli.data.cases import ImageFile
from crkd_cli.data.layout import PREDICTED_MASKS
from crkd_cli.data.pairing import images_in
from crkd_cli.data.raw import formats
from crkd_cli.data.raw.formats import Volume
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError, UsageError, pluralize
from crkd_cli.inference.inferer import Inferer, build_inferer, most_probable
from crkd_cli.inference.masks import MaskValues
from crkd_cli.inference.overlay import draw_overlay
from crkd_cli.paths import DiskFullError, atomic_write
from crkd_cli.pipeline import run_pipeline
from crkd_cli.progress import Notify, Progress
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.runtime.distributed import joint_output_folder

SUBFOLDERS = ("overlays", "probabilities")  # of the output folder


@dataclass(frozen=True)
class PredictOptions:
    """What to write for every image."""

    # OUT/overlays/STEM.png, with the subfolder of the image before STEM
    overlays: bool = False
    # OUT/probabilities/STEM.npy: [K, *S] float32, axes as in the mask
    probabilities: bool = False
    largest_component: bool = False  # keep only the largest connected component of every class
    overwrite: bool = False  # replace existing files instead of skipping the image
    class_numbers: bool = False  # masks contain 0 to K − 1 instead of the values of the label files


@dataclass(frozen=True)
class PredictResult:
    """How many images were predicted, skipped and failed, and what the masks contain."""

    folder: Path
    written: int
    skipped: int
    failures: list[str]  # one line each
    classes: tuple[tuple[int, str], ...]  # the value in masks and the name of every class


def predict(
    source: Path,
    checkpoint: Path,
    notify: Notify,
    progress: Progress,
    out: Path | None = None,
    device: str | None = None,
    options: PredictOptions | None = None,
) -> PredictResult:
    """Predict a mask for the image `source`, or for every image in the folder `source`.

    Masks are written to `out` (default: FOLDER-masks), in the same subfolders as the images. A file
    that cannot be read is listed in the result and does not stop the others; a full disk does.
    Several processes share the images. While an image is predicted, the next one is read and the
    masks of the previous one are written.

    Raises CrkdError if there is no image or no checkpoint, if a case has several images, or if the
    output is not writable, and UsageError if the output would replace the images, or if a format
    cannot hold the values.
    """
    options = options or PredictOptions()
    out = _output_folder(source, out)
    images = _find_images(source, out, notify)
    loaded = load_checkpoint(checkpoint)
    if loaded.path != checkpoint:  # a run folder was given
        notify(f"checkpoint: {loaded.path}")
    _check_channels(images, loaded.spec)
    folder = source if source.is_dir() else source.parent
    places = {image.parent.relative_to(folder) for image in images}
    subfolders = [str(Path(part, place)) for part in ("", *SUBFOLDERS) for place in places]
    with joint_output_folder(out, "--out", *subfolders):
        notify(f"masks: {out}")
        inferer = build_inferer(loaded, device, notify)
        predictor = _FilePredictor(inferer, loaded.spec, folder, out, options)
        predictor.check_targets(images)
        return _predict(images, predictor, out, progress)


def _predict(
    images: Sequence[Path], predictor: "_FilePredictor", out: Path, progress: Progress
) -> PredictResult:
    shard = world.strided_shard(images)
    results: list[bool | str] = []  # per image: written (True), skipped (False), or an error
    pipeline = run_pipeline(shard, predictor.read, predictor.infer, predictor.write)
    # Closing waits for the image that is being written, before the folder is given up.
    with progress("predicting", len(shard), "images") as advance, closing(pipeline) as outcomes:
        for image, outcome in zip(shard, outcomes, strict=True):
            try:
                results.append(_written_or_error(outcome, image))
            except DiskFullError as error:
                raise DiskFullError(
                    f"{error}; {results.count(True)} of {pluralize(len(shard), 'image')} written: "
                    "free some space and rerun the same command"
                ) from None
            advance(1, image.name)
    results = world.gather_results(results)
    failures = [result for result in results if isinstance(result, str)]
    written, skipped = results.count(True), results.count(False)
    return PredictResult(out, written, skipped, failures, predictor.mask_values.classes)


def _written_or_error(outcome: Future[bool], image: Path) -> bool | str:
    """Return whether the files of `image` were written, or the error if they could not be.

    Raises DiskFullError, because the other images could not be written either.
    """
    try:
        return outcome.result()
    except DiskFullError:
        raise
    except CrkdError as error:
        message = str(error)
        return message if str(image) in message else f"{image}: {message}"


class _Scan(NamedTuple):
    """An image file and its content."""

    path: Path
    volume: Volume  # with the values of the file
    stored: NDArray[Any]  # [C, *S], normalized


class _Prediction(NamedTuple):
    """What the network predicts for a scan."""

    scan: _Scan
    labels: NDArray[Any]  # [*S] class numbers
    probabilities: NDArray[np.float32] | None  # [K, *S], if they are to be written


class _FilePredictor:
    """Predicts an image file in three steps, which pass on None if the image is skipped."""

    def __init__(
        self,
        inferer: Inferer,
        spec: DatasetSpec,
        folder: Path,
        out: Path,
        options: PredictOptions,
    ) -> None:
        self._inferer, self._spec, self._options = inferer, spec, options
        self._folder, self._out = folder, out  # of the images, and of the masks
        self._source = SOURCES[spec.source]()
        self.mask_values = MaskValues(spec, class_numbers=options.class_numbers)

    def check_targets(self, images: Sequence[Path]) -> None:
        """Check what `images` would write.

        Raises CrkdError if two of them would write the same file, like a.png and a.jpg, and
        UsageError if the format of a mask cannot hold the values.
        """
        owners: dict[Path, Path] = {}
        for image in images:
            self.mask_values.check(self._targets(image)["mask"])
            for target in self._targets(image).values():
                other = owners.setdefault(target, image)
                if other != image:
                    raise CrkdError(
                        f"{other} and {image.name} would both write {target}; rename one of them"
                    )

    def read(self, image: Path) -> _Scan | None:
        """Read and normalize `image`. Return None if its files exist already and are kept."""
        targets = self._targets(image).values()
        if not self._options.overwrite and all(file.is_file() for file in targets):
            return None
        volume = self._source.open_image((ImageFile(image),), self._spec)
        return _Scan(image, volume, self._source.finish(volume, image, self._spec).array)

    def infer(self, scan: _Scan | None) -> _Prediction | None:
        """Predict the labels and, if they are to be written, the probabilities."""
        if scan is None:
            return None
        if not self._options.probabilities:
            return _Prediction(scan, self._inferer(scan.stored, scan.volume.size), None)
        probabilities = self._inferer.probabilities(scan.stored, scan.volume.size)
        labels = most_probable(torch.from_numpy(probabilities)[None])[0].numpy()
        return _Prediction(scan, labels, probabilities)

    def write(self, prediction: _Prediction | None) -> bool:
        """Write the files of the image. Return False if it was skipped."""
        if prediction is None:
            return False
        (image, volume, _), labels, probabilities = prediction
        targets = self._targets(image)
        if self._options.largest_component:
            labels = largest_components(labels)
        if probabilities is not None:
            with atomic_write(targets["probabilities"]) as temporary:
                np.save(temporary, probabilities, allow_pickle=False)
        if "overlay" in targets:
            picture = draw_overlay(volume.array, labels, self._spec, volume.spacing_mm, image.name)
            with atomic_write(targets["overlay"]) as temporary:
                picture.save(temporary, format="PNG")
        mask = self.mask_values.encode(labels)
        formats.write_label(targets["mask"], mask, volume)
        return True

    def _targets(self, image: Path) -> dict[str, Path]:
        """Return the files to write for `image`. The mask is last, so it marks the others done."""
        place = image.parent.relative_to(self._folder)
        stem = formats.stem(image)
        targets = {}
        if self._options.overlays:
            targets["overlay"] = self._out / "overlays" / place / f"{stem}.png"
        if self._options.probabilities:
            targets["probabilities"] = self._out / "probabilities" / place / f"{stem}.npy"
        targets["mask"] = self._out / place / formats.label_name(image)
        return targets


def largest_components(labels: NDArray[Any]) -> NDArray[Any]:
    """Keep only the largest face-connected component of every class in `labels` [*S]."""
    kept = np.zeros_like(labels)
    # For speed with many classes, each is searched in its bounding box.
    for k, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        components, _ = ndimage.label(labels[box] == k)
        sizes = np.bincount(components.ravel())[1:]
        kept[box][components == 1 + sizes.argmax()] = k
    return kept


def _check_channels(images: Sequence[Path], spec: DatasetSpec) -> None:
    """Raise CrkdError if a case has several images, one per channel, as nnU-Net numbers them.

    The numbers are channels if the model was trained on images that end in _0000.
    """
    if "{name}_0000" not in spec.description.image_patterns.get(None, ""):
        return
    paths = {(image.parent, formats.stem(image)): image for image in images}
    for (folder, stem), image in paths.items():
        first = paths.get((folder, f"{stem[:-4]}0000"))
        if first not in (None, image) and re.fullmatch(r".*_\d{4}", stem):
            raise CrkdError(
                f"{first} and {image} are channels of one case, but the model was trained on one "
                "channel; put the images of that channel into a folder of their own"
            )


def _output_folder(source: Path, out: Path | None) -> Path:
    """Return `out` or its default. Raises UsageError if it is the folder of the images."""
    folder = (source if source.is_dir() else source.parent).resolve()
    if out is None and not folder.name:
        raise UsageError(f"there is no default for masks of images in {folder}; give --out")
    out = out or folder.with_name(folder.name + PREDICTED_MASKS)
    if out.resolve() == folder:
        raise UsageError(
            f"--out {out} is the images' own folder, where masks would replace them; "
            "give another folder"
        )
    return out


def _find_images(source: Path, out: Path, notify: Notify) -> list[Path]:
    """Return the images to predict. Raises CrkdError if there are none."""
    if not source.exists():
        raise CrkdError(f"{source} does not exist; give an image or a folder of images")
    if not source.is_dir():
        return [source]
    images, notes = images_in(source, out)
    for note in notes:
        notify(f"note: {note}")
    if not images:
        suffixes = ", ".join(formats.SUFFIXES)
        raise CrkdError(
            f"{source} contains no images, nor do its subfolders (formats: {suffixes}); "
            "give a file, or another folder"
        )
    return images
