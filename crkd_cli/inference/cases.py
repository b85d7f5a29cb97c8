"""The cases that `crkd predict` predicts, and where their masks go."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crkd_cli.data.cases import DicomCase, ImageFile
from crkd_cli.data.channels import Image, images_to_predict
from crkd_cli.data.inventory import FileRecord, RawFile, is_text, list_files, take_inventory
from crkd_cli.data.layout import LABELS, PREDICTED_MASKS, candidates
from crkd_cli.data.naming import split_masks
from crkd_cli.data.raw import dicom, formats
from crkd_cli.data.series import FoundSeries, find_series
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.progress import Notify
from crkd_cli.text import printable

LABEL_FOLDERS = [name.lower() for name in (*LABELS, "labelsTs")]
MAX_NOTED = 5  # names in a note


@dataclass(frozen=True)
class Case:
    """The image files of a case, and the name of its mask."""

    images: tuple[ImageFile, ...]
    mask: Path  # relative to the output folder
    label: str  # stands for it in errors: the path of a file or folder
    problem: str = ""  # a sentence: why the case cannot be read

    @property
    def image(self) -> Path:
        """The first image file."""
        return self.images[0].path

    @property
    def series(self) -> tuple[Path, ...]:
        """The files of the first image, if it is DICOM."""
        return self.images[0].slices

    @property
    def title(self) -> str:
        """The name of the only file; of channels and of DICOM that of the mask."""
        is_file = len(self.images) == 1 and not self.series
        return self.image.name if is_file else self.name.name

    @property
    def name(self) -> Path:
        """The name of the mask without its suffix, which other files of the case share."""
        return self.mask.with_name(formats.stem(self.mask))


def find_cases(source: Path, out: Path, spec: DatasetSpec, notify: Notify) -> list[Case]:
    """Return the cases of the image `source`, or of all images in the folder `source`.

    The images lie in the folder itself or, if there are none, in its subfolders. DICOM may lie
    anywhere below it; every series is a case, or has the channel that the description says. Raises
    CrkdError if there is no image, or if a name is not valid UTF-8.
    """
    if not source.is_dir():
        return [_case_of_file(source, spec)]
    files = _files_in(source, out)
    record = FileRecord()
    found = _find_series(files, record, spec)
    for line in found.lines:
        notify(line)
    cases = [_dicom_case(file, file.dicom, source) for file in found.files if file.dicom]
    files_of_images = _images_among(found.files, source, record)
    images, unused = images_to_predict(files_of_images, source, spec)
    for note in take_inventory(files, (), record, "").notices():
        notify(f"note: {note}")
    if unused:
        names = ", ".join(printable(file.relative_to(source)) for file in unused[:MAX_NOTED])
        more = f" and {len(unused) - MAX_NOTED} more" if len(unused) > MAX_NOTED else ""
        notify(f"note: left out (not a channel): {names}{more}")
    cases += [_case(image) for image in images]
    if not cases:
        raise _no_images(source)
    return cases


def check_input(source: Path, out: Path | None) -> None:
    """Check what can be checked before a checkpoint is loaded, which takes seconds.

    Raises CrkdError if `source` is missing, has no image format or contains no image, and
    UsageError if the masks would be written to the folder of the images.
    """
    folder = output_folder(source, out)
    if not source.is_dir():
        formats.checked_suffix(source)
    elif not any(file.is_image or dicom.is_dicom(file.path) for file in _files_in(source, folder)):
        raise _no_images(source)


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


def _no_images(source: Path) -> CrkdError:
    suffixes = ", ".join(formats.SUFFIXES)
    return CrkdError(
        f"{source} contains no images, nor do its subfolders (formats: {suffixes}); "
        "give a file, or another folder"
    )


def _files_in(folder: Path, out: Path) -> list[RawFile]:
    """Return all files below `folder`, except those in `out` with the predicted masks."""
    files = list_files(folder)
    if out.resolve().is_relative_to(folder.resolve()):
        prefix = f"{out.resolve().relative_to(folder.resolve()).as_posix()}/"
        files = [file for file in files if not file.name.startswith(prefix)]
    return files


def _images_among(files: Sequence[RawFile], folder: Path, record: FileRecord) -> list[Path]:
    """Return the images in `folder`, except DICOM, or, if there are none, in its subfolders."""
    images = [image for image in candidates(files, "", record) if image.file.dicom is None]
    for image in images:
        if not is_text(image.file.name):
            raise CrkdError(f"{printable(folder)}: {record.refused[image.file.path]}")
    are_direct = any(not image.folder for image in images)
    accepted = []
    for image in images:
        if are_direct and image.folder:
            record.left_out[image.file.path] = "in a subfolder beside images"
        elif image.folder.lower() in LABEL_FOLDERS:
            record.left_out[image.file.path] = "in a folder of labels"
        else:
            accepted.append(image)
    images, masks = split_masks(accepted, set())
    record.left_out |= {mask.file.path: "a mask by its name" for mask in masks}
    return [image.file.path for image in images]


def _find_series(files: Sequence[RawFile], record: FileRecord, spec: DatasetSpec) -> FoundSeries:
    """Return the DICOM series that the description chooses; all if it chooses no channels.

    A single series is not chosen, because the user did.
    """
    found = find_series(files, record)
    selection = spec.description.series_by_channel
    if selection is None or not found.series:
        return found
    if isinstance(selection, str):
        return find_series(files, record, selection) if len(found.series) > 1 else found
    return find_series(files, record, selection)


def _dicom_case(file: RawFile, case: DicomCase, folder: Path) -> Case:
    """Return the case of a DICOM series below `folder`, or of one series per channel."""
    label = str(folder / file.name)
    name = Path(case.id if case.is_private else file.name)
    mask = name.with_name(f"{formats.stem(name)}.nii.gz")
    return Case(case.images, mask, label, file.problem and f"{label} {file.problem}")


def _case_of_file(file: Path, spec: DatasetSpec) -> Case:
    """Return the case of a file, with the other channels in its folder."""
    if dicom.is_dicom(file):
        return _case_of_dicom_file(file, spec)
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


def _case_of_dicom_file(file: Path, spec: DatasetSpec) -> Case:
    """Return the case of a file. Raises CrkdError if it is no image, or a slice of a volume."""
    record = FileRecord()
    found = find_series([RawFile(file, file.name)], record)
    if reason := record.left_out.get(file):
        raise CrkdError(f"{file} is {reason}; give an image")
    (raw,) = found.files
    assert raw.dicom is not None
    if spec.dims == 3 and not raw.problem and len(dicom.read_tags(file).frames) == 1:
        raise CrkdError(f"{file} is one slice of a DICOM series; give its folder")
    return _dicom_case(raw, raw.dicom, file.parent)


def _case(image: Image) -> Case:
    """Return the case of an image; its mask has the format of the first file."""
    folder, name = image.key
    first = image.files[0].path
    suffix = first.name.removeprefix(formats.stem(first))
    mask = Path(folder, formats.label_name(Path(f"{name}{suffix}")))
    return Case(image.image_files, mask, str(first), image.problem)
