"""The cases that `crkd predict` predicts, and where their masks go."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crkd_cli.data.cases import ImageFile
from crkd_cli.data.layout import PREDICTED_MASKS
from crkd_cli.data.pairing import images_in
from crkd_cli.data.raw import formats
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.progress import Notify


@dataclass(frozen=True)
class Case:
    """The image files of a case, and the name of its mask."""

    images: tuple[ImageFile, ...]
    mask: Path  # relative to the output folder

    @property
    def image(self) -> Path:
        """The first image file, which stands for all of them in messages."""
        return self.images[0].path

    @property
    def series(self) -> tuple[Path, ...]:
        """The files of the first image, if it is a DICOM series."""
        return self.images[0].slices

    @property
    def name(self) -> Path:
        """The name of the mask without its suffix, which other files of the case share."""
        return self.mask.with_name(formats.stem(self.mask))


def find_cases(source: Path, out: Path, spec: DatasetSpec, notify: Notify) -> list[Case]:
    """Return the cases of the image `source`, or of all images in the folder `source`.

    Raises CrkdError if there are none, or if a case has several images.
    """
    if not source.is_dir():
        return [_file_case(source, source.parent)]
    images, notes = images_in(source, out)
    for note in notes:
        notify(f"note: {note}")
    if not images:
        suffixes = ", ".join(formats.SUFFIXES)
        raise CrkdError(
            f"{source} contains no images, nor do its subfolders (formats: {suffixes}); "
            "give a file, or another folder"
        )
    _check_channels(images, spec)
    return [_file_case(image, source) for image in images]


def output_folder(source: Path, out: Path | None) -> Path:
    """Return `out` or its default, FOLDER-masks.

    Raises CrkdError if `source` does not exist, and UsageError if the masks would be written to the
    folder of the images.
    """
    if not source.exists():
        raise CrkdError(f"{source} does not exist; give an image or a folder of images")
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


def _file_case(image: Path, folder: Path) -> Case:
    """Return the case of a file below `folder`."""
    mask = image.parent.relative_to(folder) / formats.label_name(image)
    return Case((ImageFile(image),), mask)


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
