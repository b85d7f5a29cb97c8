"""Valid DICOM series and images of two channels, and datasets of them."""

import tempfile
from functools import cache
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import EnhancedCTImageStorage

from tests import dicom
from tests.reliability.originals import image, label

SERIES = ("plain", "rle", "multiframe")
SPACING = (3.0, 1.5, 1.5)
TO_RAS = np.diag([-1.5, -1.5, 3.0, 1.0])
CHANNELS = ("numbered", "nifti", "nrrd", "h5")
TWO_CHANNELS = "channels: [{name: a, modality: MR}, {name: b, modality: MR}]\n"


@cache
def series(form: str, number: int) -> dict[str, bytes]:
    """Return the files of a CT series, or of a multi-frame file."""
    voxels = np.roll(image(3), number, axis=-1).astype(np.int16) * 10
    tags = {
        "PatientName": "Quimby^Zacharias",
        "PatientID": f"PID4711-{number}",
        "PatientBirthDate": "19370102",
        "StudyDate": "19370102",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        title = f"{form} {number}"
        if form == "multiframe":
            file = dicom.write_enhanced(folder / "IM1", voxels - 1024, name=title, spacing=SPACING)
            dataset = pydicom.dcmread(file)
            dataset.SOPClassUID, dataset.Modality = EnhancedCTImageStorage, "CT"
            for key, value in tags.items():
                setattr(dataset, key, value)
            dicom.save(dataset, file)
        else:
            dicom.write_series(
                folder,
                voxels,
                name=title,
                spacing=SPACING,
                origin=(0.0, 0.0, 0.0),
                compressed=form == "rle",
                tags=tags,
            )
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def write_case(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files of a case."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_label(file: Path, number: int) -> None:
    """Write the label of case `number` on the grid of its image."""
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.roll(label(3), number, axis=-1).T, TO_RAS), file)


def write_channels(source: Path, form: str, case: str, number: int) -> None:
    """Write an image with two channels in one of the forms."""
    folder = source / "images"
    folder.mkdir(parents=True, exist_ok=True)
    first = np.roll(image(3), number, axis=-1).astype(np.int16)
    pair = np.stack([first, 300 - first])
    if form == "numbered":
        for channel, voxels in enumerate(pair):
            file = folder / f"{case}_{channel:04d}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(voxels.T, TO_RAS), file)
    elif form == "nifti":
        nibabel.save(nibabel.Nifti1Image(pair.T, TO_RAS), folder / f"{case}.nii.gz")
    elif form == "nrrd":
        vector = sitk.GetImageFromArray(np.moveaxis(pair, 0, -1), isVector=True)
        vector.SetSpacing(SPACING[::-1])
        sitk.WriteImage(vector, folder / f"{case}.nrrd", useCompression=True)
    else:
        with h5py.File(folder / f"{case}.h5", "w") as file:
            for name, voxels in zip("ab", pair, strict=True):
                file[name] = voxels


def write_dataset(source: Path, name: str, cases: int) -> None:
    """Write the dataset `ct` of DICOM series, or `two` of numbered files."""
    for number in range(cases):
        case = f"case{number}"
        write_label(source / "labels" / f"{case}.nii.gz", number)
        if name == "ct":
            write_case(source / "images" / case, series("plain", number))
        else:
            write_channels(source, "numbered", case, number)
    if name == "two":
        (source / "dataset.yaml").write_text(TWO_CHANNELS)
