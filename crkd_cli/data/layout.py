"""Find the folders with the images and labels of a user's dataset."""

import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from crkd_cli.data.inventory import FileRecord, RawFile
from crkd_cli.data.naming import Candidate, label_keys, split_masks
from crkd_cli.data.raw import dicom, formats
from crkd_cli.errors import CrkdError
from crkd_cli.text import printable

# Names of folders, in upper or lower case. The first that contains images is used.
IMAGES = ("images", "imagesTr")
LABELS = ("labels", "masks", "labelsTr")
TEST_PARTS = {
    "imagests": "the test images of nnU-Net; predict their masks with crkd predict",
    "labelsts": "the labels of nnU-Net's test images, which are not part of the dataset",
}
# Files that often lie beside images, and are left out without a notice.
SIDECARS = (".txt", ".json", ".csv", ".tsv", ".xml", ".md", ".html", ".pdf", ".yaml", ".yml")
HEADER_SUFFIXES = (".mhd", ".nhdr", ".hdr")  # their voxels may be in another file
# The end of the name of the folder that `crkd predict FOLDER` writes beside FOLDER.
PREDICTED_MASKS = "-masks"
# The subfolder of its pictures, named like the masks.
OVERLAYS = "overlays"
UNSUPPORTED = "not in a supported image format"


class Layout(NamedTuple):
    """The files that may be images, and those that may be labels."""

    images: list[Candidate]
    labels: list[Candidate]
    images_folder: str  # as in messages: relative to the root, "" for the root
    labels_folder: str | None  # None: labels are beside the images


def base_folder(files: Sequence[RawFile]) -> str:
    """Return the folder in which all images lie, with / at its end, or "" for the root.

    It is never a folder named like one of images or labels.
    """
    base = ""
    while True:
        images = [file.name[len(base) :] for file in _below(files, base) if file.is_image]
        folders = {name.partition("/")[0] for name in images if "/" in name}
        if len(folders) != 1 or any("/" not in name for name in images):
            return base
        (folder,) = folders
        if _rank(folder, (*IMAGES, *LABELS, *TEST_PARTS)) is not None:
            return base
        base = f"{base}{folder}/"


def find_layout(files: Sequence[RawFile], base: str, record: FileRecord) -> Layout | None:
    """Return where images and labels lie below the folder `base`, or None if that is unclear.

    Files with the format of an image that lie elsewhere are recorded as left out, and files that
    cannot be read as refused.
    """
    inside = _below(files, base)
    images, labels = (_choose_prefix(files, base, names) for names in (IMAGES, LABELS))
    direct = [file for file in inside if "/" not in file.name[len(base) :]]
    if images is not None:
        image_files = _below(inside, images)
    elif any(file.is_image and file.dicom is None for file in direct):
        images, image_files = base, direct
    elif series := _series_outside(inside, base, labels):
        images, image_files = _common_folder(series), series
    elif labels is None:
        return _case_folders(inside, base, record)
    else:
        return None

    label_files = [] if labels is None else _below(inside, labels)
    beside = _beside_series(inside, images)
    labels_beside = set(beside)
    image_files = [file for file in image_files if file not in labels_beside]
    _leave_out_others(inside, base, {*image_files, *label_files, *beside}, record)
    label_candidates = candidates(label_files, labels or "", record)
    return Layout(
        candidates(image_files, images, record),
        [*label_candidates, *candidates(beside, images, record)],
        images.rstrip("/"),
        None if labels is None else labels.rstrip("/"),
    )


def find_labels(files: Sequence[RawFile], base: str, record: FileRecord) -> list[Candidate] | None:
    """Return the files in the folder of labels in `base`; None if there is no such folder."""
    prefix = _choose_prefix(files, base, LABELS)
    if prefix is None:
        return None
    return candidates(_below(files, prefix), prefix, record)


def candidates(files: Iterable[RawFile], prefix: str, record: FileRecord) -> list[Candidate]:
    """Return the files that may be images or labels: those in the folder `prefix` or one below.

    Records why the other files are not, and which of the returned files cannot be read.
    """
    files = _below(files, prefix)
    data_files = _data_files(files)
    predicted = _mask_folders(files, prefix)
    direct = {
        formats.stem(Path(file.name)) for file in files if "/" not in file.name[len(prefix) :]
    }
    accepted = []
    for file in files:
        folder, _, name = file.name[len(prefix) :].rpartition("/")
        stem = formats.stem(Path(name))
        if file.skipped:
            continue
        if file.dicom is not None:
            if file.problem:
                record.refused[file.path] = f"{printable(file.name)} {file.problem}"
            accepted.append(Candidate.of_dicom(file, prefix))
            continue
        if file.path in data_files:
            record.used[file.path] = "voxel file"
        elif not file.is_image:
            reasons = record.unused if name.lower().endswith(SIDECARS) else record.left_out
            reasons[file.path] = UNSUPPORTED
        elif reason := _reason_by_folder(folder, stem, direct, predicted, record):
            record.left_out[file.path] = reason
        else:
            if file.problem:
                record.refused[file.path] = f"{printable(file.name)} {file.problem}"
            accepted.append(Candidate(file, folder, stem))
    return accepted


def _reason_by_folder(
    folder: str, stem: str, direct: set[str], predicted: set[str], record: FileRecord
) -> str:
    """Return why a file in `folder` is left out, or "".

    `direct` are the names of the files in no folder, `predicted` the folders of predicted masks.
    """
    if "/" in folder:
        return "nested more than one folder deep, which is not searched"
    if folder == OVERLAYS and stem in direct:
        return "overlays of the files beside their folder"
    if folder not in predicted:
        return ""
    images = f"{printable(folder.removesuffix(PREDICTED_MASKS))}/"
    shown = "another folder" if record.reveals(folder) else images
    return f"predicted masks of the images in {shown}"


def _choose_prefix(files: Sequence[RawFile], base: str, names: tuple[str, ...]) -> str | None:
    """Return the first of the folders in `base` called `names` with images, else the first."""
    inside = [file.name[len(base) :] for file in _below(files, base)]
    folders = {name.partition("/")[0] for name in inside if "/" in name}
    ranks = {folder: _rank(folder, names) for folder in folders}
    chosen = sorted((rank, folder) for folder, rank in ranks.items() if rank is not None)
    prefixes = [f"{base}{folder}/" for _, folder in chosen]
    with_images = (
        prefix for prefix in prefixes if any(file.is_image for file in _below(files, prefix))
    )
    return next(with_images, next(iter(prefixes), None))


def _rank(folder: str, names: Sequence[str]) -> int | None:
    """Return the position of a folder's name in `names`, in upper or lower case."""
    lower = [name.lower() for name in names]
    return lower.index(folder.lower()) if folder.lower() in lower else None


def _case_folders(inside: Sequence[RawFile], base: str, record: FileRecord) -> Layout | None:
    """Return the layout in which folders contain images with their labels beside them.

    Every folder has one image, or a label for each image. Returns None for other layouts.
    """
    images, masks = split_masks(candidates(inside, base, FileRecord()), set())
    counts = Counter(image.folder for image in images)
    labeled = label_keys(masks)
    is_clear = all(counts[image.folder] == 1 or image.key in labeled for image in images)
    if not images or not masks or not is_clear:
        return None
    return Layout(candidates(inside, base, record), [], base.rstrip("/"), None)


def _leave_out_others(
    inside: Sequence[RawFile], base: str, used: set[RawFile], record: FileRecord
) -> None:
    """Record why image files in other folders are not read."""
    for file in inside:
        if file in used or file.skipped or not file.is_image:
            continue
        folder, slash, _ = file.name[len(base) :].partition("/")
        if folder.lower() in TEST_PARTS:
            record.left_out[file.path] = TEST_PARTS[folder.lower()]
        elif slash:
            shown = "a folder" if record.reveals(folder) else f"{folder}/"
            record.left_out[file.path] = f"in {shown}, which is not searched"
        else:
            record.left_out[file.path] = "outside the folders of images and labels"


def _series_outside(inside: Sequence[RawFile], base: str, labels: str | None) -> list[RawFile]:
    """Return the DICOM series below the folder `base` that are not in a folder of other files."""
    series = []
    for file in inside:
        folder = file.name[len(base) :].partition("/")[0].lower()
        is_label = labels is not None and file.name.startswith(labels)
        if file.dicom is not None and not is_label and folder not in TEST_PARTS:
            series.append(file)
    return series


def _common_folder(series: Sequence[RawFile]) -> str:
    """Return the folder that contains the folders of all patients, with / at its end, or ""."""
    if len(series) == 1:
        return _folder(series[0])
    patients: dict[str, list[str]] = {}
    for file in series:
        patients.setdefault(file.dicom.group if file.dicom else "", []).append(file.name)
    folders = list(map(posixpath.commonpath, patients.values()))
    folder = posixpath.commonpath(folders)
    return f"{folder}/" if folder else ""


def _beside_series(files: Sequence[RawFile], prefix: str) -> list[RawFile]:
    """Return the image files below the folder `prefix` that lie in the folders of DICOM series.

    Files that cannot be read, and those with the names of DICOM files, are not labels.
    """
    folders = set()
    others = []
    for file in _below(files, prefix):
        if file.dicom is not None:
            folders |= {f"{file.name}/", _folder(file)}
        elif file.is_image and not file.problem:
            others.append(file)
    folders.discard(prefix)
    return [
        file
        for file in others
        if _folder(file) in folders and not file.name.lower().endswith(dicom.SUFFIXES)
    ]


def _folder(file: RawFile) -> str:
    """Return the folder of a file with / at its end, or "" for the root."""
    return file.name[: file.name.rfind("/") + 1]


def _below(files: Iterable[RawFile], prefix: str) -> list[RawFile]:
    return [file for file in files if file.name.startswith(prefix)]


def _mask_folders(files: Iterable[RawFile], prefix: str) -> set[str]:
    """Return the folders of predicted masks that the folders of `files` may have beside them."""
    names: list[str] = []
    for file in files:
        names += [file.name] if file.dicom is None else file.dicom.names
    folders = {name[len(prefix) :].rpartition("/")[0] for name in names}
    return {f"{folder}{PREDICTED_MASKS}" for folder in folders if folder}


def _data_files(files: Iterable[RawFile]) -> set[Path]:
    """Return the files that contain the voxels of header files."""
    data_files: set[Path | None] = set()
    for file in files:
        if file.name.lower().endswith(HEADER_SUFFIXES) and not file.problem:
            with suppress(CrkdError):  # reported when the image is read
                data_files.add(formats.data_file(file.path))
    return {path for path in data_files if path is not None}
