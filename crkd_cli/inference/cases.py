"""The cases that `crkd predict` predicts, and where their masks go."""

from dataclasses import dataclass
from pathlib import Path

from crkd_cli.data.cases import ImageFile
from crkd_cli.data.channels import Image, images_to_predict
from crkd_cli.data.layout import PREDICTED_MASKS
from crkd_cli.data.pairing import images_in
from crkd_cli.data.raw import formats
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError, UsageError, pluralize
from crkd_cli.progress import Notify

MAX_NOTED = 5  # names in a note


@dataclass(frozen=True)
class Case:
    """The image files of a case, and the name of its mask."""

    images: tuple[ImageFile, ...]
    mask: Path  # relative to the output folder
    problem: str = ""  # a sentence: why the case cannot be read

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

    Raises CrkdError if there are none.
    """
    if not source.is_dir():
        return [_case_of_file(source, spec)]
    files, notes = images_in(source, out)
    for note in notes:
        notify(f"note: {note}")
    if not files:
        suffixes = ", ".join(formats.SUFFIXES)
        raise CrkdError(
            f"{source} contains no images, nor do its subfolders (formats: {suffixes}); "
            "give a file, or another folder"
        )
    images, others = images_to_predict(files, source, spec)
    if others:
        names = ", ".join(file.relative_to(source).as_posix() for file in others[:MAX_NOTED])
        notify(f"note: {pluralize(len(others), 'file')} left out, not a channel: {names} …")
    return [_case(image) for image in images]


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


def _case_of_file(file: Path, spec: DatasetSpec) -> Case:
    """Return the case of a file, with the other channels in its folder."""
    beside = [file]
    if len(spec.channels) > 1:
        beside += [path for path in sorted(file.parent.iterdir()) if formats.suffix(path)]
    images, _ = images_to_predict(list(dict.fromkeys(beside)), file.parent, spec)
    paths = [[part.path for part in image.files] for image in images]
    image = next((x for x, files in zip(images, paths, strict=True) if file in files), None)
    if image is None:
        raise CrkdError(
            f"{file} does not have the name of a channel ({', '.join(spec.channel_names)}); "
            "give one of these, or their folder"
        )
    return _case(image)


def _case(image: Image) -> Case:
    """Return the case of an image; its mask has the format of the first file."""
    folder, name = image.key
    first = image.files[0].path
    suffix = first.name.removeprefix(formats.stem(first))
    mask = Path(folder, formats.label_name(Path(f"{name}{suffix}")))
    return Case(image.image_files, mask, image.problem)
